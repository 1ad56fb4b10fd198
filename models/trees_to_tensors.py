#!/usr/bin/env python3
"""Rewrites tree ensembles as plain tensor operators, so that every engine runs them: same inputs, same scores.

    python3 trees_to_tensors.py MODEL.onnx CONVERTED.onnx [--keep OUTPUT]

Takes TreeEnsembleClassifier and TreeEnsembleRegressor (gradient boosting, random and isolation forests), and what stands
around them in a scikit-learn pipeline: Scaler, FeatureVectorizer, ZipMap. The label output of a classifier is left out: the
scores say the same, and Weir reads those. What cannot be rewritten is named, and nothing is written. Needs numpy and onnx.

All trees are walked at once, one level a step. A table has a row a node: feature, threshold, left, right. `at` [rows, trees]
is where each walk stands; a step looks up feature and threshold there, compares, and moves on. A leaf has itself for both
children, so that walks that have ended stay where they are. At the end each leaf's weights are looked up and added over
the trees. Any comparison but equality becomes `x <= threshold`: with f32 inputs `x < t` is `x <= ` the next number below t.
"""

import argparse
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
AROUND = ("Scaler", "FeatureVectorizer", "ZipMap")


class Unsupported(Exception):
    """What this program does not rewrite, and what to do about it."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("converted")
    parser.add_argument("--keep", metavar="OUTPUT", help="the only output to keep; without it all that are not labels")
    arguments = parser.parse_args()
    try:
        made = convert(onnx.load(arguments.model), arguments.keep)
    except Unsupported as error:
        sys.exit(f"trees_to_tensors: {arguments.model}: {error}")
    onnx.save(made, arguments.converted)


def convert(model, keep=None):
    """The same model without operators of ai.onnx.ml; `Unsupported` names what stands in the way."""
    graph = model.graph
    kept = [o for o in graph.output if (o.name == keep if keep else is_scores(o))]
    if not kept:
        have = ", ".join(o.name for o in graph.output)
        raise Unsupported(f"there is no output of f32 scores called {keep!r}" if keep else f"none of its outputs are scores: {have}")
    nodes, constants = [], []
    for node in needed(graph, kept):
        if node.domain != "ai.onnx.ml":
            nodes.append(node)
        elif node.op_type in TREES:
            ensemble(node, nodes, constants)
        elif node.op_type == "Scaler":
            scaler(node, nodes, constants)
        elif node.op_type == "FeatureVectorizer":
            nodes.append(helper.make_node("Concat", node.input, node.output, axis=1))
        elif node.op_type == "ZipMap":
            nodes.append(helper.make_node("Identity", node.input, node.output))
        else:
            known = ", ".join(TREES + AROUND)
            raise Unsupported(f"operator {node.op_type} is not rewritten (known: {known}); run the model with ONNX Runtime")
    read = {name for node in nodes for name in node.input}
    constants += [c for c in graph.initializer if c.name in read]
    outputs = [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, dims(o, nodes)) for o in kept]
    opset = max([17] + [o.version for o in model.opset_import if o.domain == ""])
    made = helper.make_model(
        helper.make_graph(nodes, graph.name, graph.input, outputs, constants),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=max(8, model.ir_version),
        producer_name="weir models/trees_to_tensors.py",
    )
    onnx.checker.check_model(made)
    return made


def is_scores(output):
    """Whether an output is an f32 tensor, or the maps that ZipMap makes of one."""
    kind = output.type.WhichOneof("value")
    return kind == "sequence_type" or (kind == "tensor_type" and output.type.tensor_type.elem_type == TensorProto.FLOAT)


def dims(output, nodes):
    """An output's shape as declared; what was a list of maps has none."""
    if output.type.WhichOneof("value") == "sequence_type":
        return ["batch", None]
    shape = [d.dim_param or d.dim_value or None for d in output.type.tensor_type.shape.dim]
    return shape if shape and shape[0] is not None else ["batch"] + shape[1:]


def needed(graph, outputs):
    """The nodes that these outputs depend on, in their order."""
    wanted, nodes = {o.name for o in outputs}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    return nodes[::-1]


def scaler(node, nodes, constants):
    """`(x - offset) * scale`."""
    given, name = attributes(node), node.output[0]
    constants += [
        tensor(f"{name}/offset", np.array(given.get("offset", [0.0]), np.float32)),
        tensor(f"{name}/scale", np.array(given.get("scale", [1.0]), np.float32)),
    ]
    nodes += [
        helper.make_node("Sub", [node.input[0], f"{name}/offset"], [f"{name}/centred"]),
        helper.make_node("Mul", [f"{name}/centred", f"{name}/scale"], [name]),
    ]


def ensemble(node, nodes, constants):
    """A walk down all trees, the sum or mean of the leaves, and what the operator does with it."""
    given = attributes(node)
    classifier = node.op_type == "TreeEnsembleClassifier"
    name = node.output[1] if classifier else node.output[0]
    prefix = "class" if classifier else "target"
    labels = given.get("classlabels_int64s") or given.get("classlabels_strings")
    width = len(labels) if classifier else given.get("n_targets", 1)
    # Of two classes scikit-learn's trees may weigh one alone: the other's score follows.
    single = classifier and width == 2 and len(set(given["class_ids"])) == 1
    if single:
        given["class_ids"], width = [0] * len(given["class_ids"]), 1
    table = Table(given, prefix, width)
    leaves = walk(node.input[0], name, table, nodes, constants)
    total = f"{name}/total"
    aggregate = given.get("aggregate_function", b"SUM").decode()
    if aggregate not in ("SUM", "AVERAGE"):
        raise Unsupported(f"aggregate_function {aggregate} is not rewritten, only SUM and AVERAGE are")
    constants.append(tensor(f"{name}/trees", np.array([1], np.int64)))
    nodes.append(helper.make_node("ReduceSum", [leaves, f"{name}/trees"], [f"{name}/sum"], keepdims=0))
    factor = 1.0 / len(table.roots) if aggregate == "AVERAGE" else 1.0
    base = np.zeros(width, np.float32) + np.array(given.get("base_values") or [0.0], np.float32)
    constants += [tensor(f"{name}/factor", np.float32(factor)), tensor(f"{name}/base", base)]
    nodes.append(helper.make_node("Mul", [f"{name}/sum", f"{name}/factor"], [f"{name}/mean"]))
    nodes.append(helper.make_node("Add", [f"{name}/mean", f"{name}/base"], [total]))
    transform = given.get("post_transform", b"NONE").decode()
    if single:
        second_class(total, name, transform, all(w >= 0 for w in given["class_weights"]), nodes, constants)
    elif transform == "NONE":
        nodes.append(helper.make_node("Identity", [total], [name]))
    elif transform in ("SOFTMAX", "LOGISTIC"):
        made = dict(SOFTMAX=("Softmax", dict(axis=1)), LOGISTIC=("Sigmoid", {}))[transform]
        nodes.append(helper.make_node(made[0], [total], [name], **made[1]))
    else:
        raise Unsupported(f"post_transform {transform} is not rewritten, only NONE, SOFTMAX and LOGISTIC are")


def second_class(total, name, transform, positive, nodes, constants):
    """From the one score s: [1 - s, s] of probabilities, [-s, s] of margins, put through the logistic if asked for."""
    if transform not in ("NONE", "LOGISTIC"):
        raise Unsupported(f"post_transform {transform} of one weighed class is not rewritten, only NONE and LOGISTIC are")
    one = 1.0 if positive else 0.0
    constants.append(tensor(f"{name}/one", np.float32(one)))
    nodes.append(helper.make_node("Sub", [f"{name}/one", total], [f"{name}/other"]))
    both = name if transform == "NONE" else f"{name}/both"
    nodes.append(helper.make_node("Concat", [f"{name}/other", total], [both], axis=1))
    if transform == "LOGISTIC":
        nodes.append(helper.make_node("Sigmoid", [both], [name]))


class Table:
    """All nodes of all trees in one table, a row each; `depth` is the longest way from a root to a leaf."""

    def __init__(self, given, prefix, width):
        trees, ids = given["nodes_treeids"], given["nodes_nodeids"]
        row = {key: i for i, key in enumerate(zip(trees, ids))}
        count = len(row)
        self.feature = np.zeros(count, np.int32)
        self.threshold = np.zeros(count, np.float32)
        self.left, self.right = np.arange(count, dtype=np.int32), np.arange(count, dtype=np.int32)
        self.weights = np.zeros((count, width), np.float32)
        for i, mode in enumerate(given["nodes_modes"]):
            if mode == b"LEAF":
                continue
            self.feature[i] = given["nodes_featureids"][i]
            true, false = given["nodes_truenodeids"][i], given["nodes_falsenodeids"][i]
            value = np.float32(given["nodes_values"][i])
            if mode in (b"BRANCH_LT", b"BRANCH_GTE"):
                value = np.nextafter(value, np.float32(-np.inf))
            elif mode not in (b"BRANCH_LEQ", b"BRANCH_GT"):
                raise Unsupported(f"trees that branch by {mode.decode()} are not rewritten, only those by order are")
            if mode in (b"BRANCH_GT", b"BRANCH_GTE"):
                true, false = false, true
            self.threshold[i] = value
            self.left[i], self.right[i] = row[trees[i], true], row[trees[i], false]
        leaves = (given[f"{prefix}_{key}"] for key in ("treeids", "nodeids", "ids", "weights"))
        for tree, node, target, weight in zip(*leaves):
            self.weights[row[tree, node], target] += np.float32(weight)
        children = set(self.left[self.left != np.arange(count)]) | set(self.right[self.right != np.arange(count)])
        self.roots = np.array([i for i in range(count) if i not in children], np.int32)
        if len(self.roots) != len(set(trees)):
            raise Unsupported(f"{len(set(trees))} trees have {len(self.roots)} roots: the file is damaged")
        self.depth, at = 0, self.roots
        while np.any(self.left[at] != at):
            self.depth += 1
            at = np.unique(np.concatenate([self.left[at], self.right[at]]))
            if self.depth > count:
                raise Unsupported("a tree leads back to itself: the file is damaged")


def walk(x, name, table, nodes, constants):
    """Writes the steps from the roots to the leaves; returns the name of the leaves' weights, f32[rows, trees, width]."""
    node = lambda op, inputs, output, **given: nodes.append(helper.make_node(op, inputs, [output], **given)) or output
    part = lambda what: f"{name}/{what}"
    constants += [
        tensor(part(key), getattr(table, key)) for key in ("feature", "threshold", "left", "right", "weights")
    ]
    constants += [tensor(part("roots"), table.roots[None, :]), tensor(part("zero"), np.array([0], np.int64))]
    constants.append(tensor(part("count"), np.array([len(table.roots)], np.int64)))
    # The roots once for each row: [rows, trees].
    rows = node("Slice", [node("Shape", [x], part("shape")), part("zero"), part("first")], part("rows"))
    constants.append(tensor(part("first"), np.array([1], np.int64)))
    at = node("Expand", [part("roots"), node("Concat", [rows, part("count")], part("size"), axis=0)], part("at0"))
    for step in range(table.depth):
        look = lambda what: node("Gather", [part(what), at], part(f"{what}{step}"), axis=0)
        value = node("GatherElements", [x, look("feature")], part(f"value{step}"), axis=1)
        low = node("LessOrEqual", [value, look("threshold")], part(f"low{step}"))
        at = node("Where", [low, look("left"), look("right")], part(f"at{step + 1}"))
    return node("Gather", [part("weights"), at], part("leaves"), axis=0)


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def tensor(name, values):
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)


if __name__ == "__main__":
    main()
