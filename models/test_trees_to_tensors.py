#!/usr/bin/env python3
"""Converted ensembles have the scores of the originals in ONNX Runtime, on random inputs and on the thresholds themselves.

    .venv/bin/python test_trees_to_tensors.py

Every kind of scikit-learn ensemble that skl2onnx writes as trees, with and without ZipMap, and every way to branch.
"""

import unittest

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import trees_to_tensors

RNG = np.random.default_rng(1)
X = RNG.standard_normal((500, 5)).astype(np.float32)
CLASSES = (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 1)
VALUE = X[:, 0] * X[:, 1]


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = session.run([session.get_outputs()[-1].name], {session.get_inputs()[0].name: x})[0]
    return np.array([[row[k] for k in sorted(row)] for row in found], np.float32) if isinstance(found, list) else found


def inputs(model):
    """Random ones, and each of which lies on some threshold in all of its features."""
    values = next(a.floats for n in model.graph.node for a in n.attribute if a.name == "nodes_values")
    on = RNG.choice(np.array(values, np.float32), (300, X.shape[1]))
    return np.concatenate([RNG.standard_normal((500, X.shape[1])).astype(np.float32) * 2, on])


class Conversion(unittest.TestCase):
    def check(self, model):
        converted, x = trees_to_tensors.convert(model), inputs(model)
        self.assertEqual({n.domain for n in converted.graph.node}, {""})
        expected = run(model, x)
        np.testing.assert_allclose(run(converted, x), expected, rtol=2e-6, atol=2e-6)
        self.assertGreater(len(np.unique(expected)), 1)

    def test_classifiers(self):
        for fitted in (
            GradientBoostingClassifier(n_estimators=20).fit(X, CLASSES),
            GradientBoostingClassifier(n_estimators=20).fit(X, CLASSES > 0),
            RandomForestClassifier(20, max_depth=6).fit(X, CLASSES),
            RandomForestClassifier(5).fit(X, CLASSES > 0),
            ExtraTreesClassifier(8).fit(X, CLASSES),
            DecisionTreeClassifier(max_depth=1).fit(X, CLASSES > 0),
            make_pipeline(StandardScaler(), RandomForestClassifier(10)).fit(X, CLASSES),
        ):
            for zipmap in (False, True):
                with self.subTest(fitted=fitted, zipmap=zipmap):
                    self.check(to_onnx(fitted, X[:1], options={"zipmap": zipmap}, target_opset={"": 17, "ai.onnx.ml": 3}))

    def test_regressors(self):
        for fitted in (
            GradientBoostingRegressor().fit(X, VALUE),
            RandomForestRegressor(8).fit(X, VALUE),
            RandomForestRegressor(8).fit(X, X[:, :2]),
        ):
            with self.subTest(fitted=fitted):
                self.check(to_onnx(fitted, X[:1], target_opset={"": 17, "ai.onnx.ml": 3}))

    def test_every_way_to_branch_by_order(self):
        for mode in ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"):
            with self.subTest(mode=mode):
                self.check(stump(mode))

    def test_what_cannot_be_rewritten_is_named(self):
        for mode in ("BRANCH_EQ", "BRANCH_NEQ"):
            with self.assertRaisesRegex(trees_to_tensors.Unsupported, mode):
                trees_to_tensors.convert(stump(mode))
        with self.assertRaisesRegex(trees_to_tensors.Unsupported, "PROBIT"):
            trees_to_tensors.convert(stump("BRANCH_LEQ", post_transform="PROBIT"))
        with self.assertRaisesRegex(trees_to_tensors.Unsupported, "MAX"):
            trees_to_tensors.convert(stump("BRANCH_LEQ", aggregate_function="MAX"))
        with self.assertRaisesRegex(trees_to_tensors.Unsupported, "Normalizer"):
            node = helper.make_node("Normalizer", ["X"], ["Y"], domain="ai.onnx.ml")
            trees_to_tensors.convert(model(node))


def stump(mode, **given):
    """One tree with two branches."""
    return model(helper.make_node(
        "TreeEnsembleRegressor",
        ["X"],
        ["Y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * 5,
        nodes_nodeids=[0, 1, 2, 3, 4],
        nodes_featureids=[0, 1, 0, 0, 0],
        nodes_modes=[mode, mode, "LEAF", "LEAF", "LEAF"],
        nodes_values=[0.5, -0.25, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 0, 0, 0],
        nodes_falsenodeids=[2, 4, 0, 0, 0],
        target_treeids=[0] * 3,
        target_nodeids=[2, 3, 4],
        target_ids=[0] * 3,
        target_weights=[1.0, 2.0, 4.0],
        **given,
    ))


def model(node):
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("X", X.shape[1]), ("Y", 1))]
    graph = helper.make_graph([node], "one", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


if __name__ == "__main__":
    unittest.main()
