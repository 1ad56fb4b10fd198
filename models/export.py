"""Writes the trained models as ONNX: opset 17, batch dimension dynamic, input `window` f32[batch, channels, window]."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8


def classifier(layers, dense, bias, channels, window):
    """Conv + ReLU for each (weight, bias, stride), mean over time, dense, softmax: `probabilities` f32[batch, classes]."""
    nodes, constants, last = [], [], "window"
    for i, (weight, offset, stride) in enumerate(layers):
        constants += [tensor(f"w{i}", weight), tensor(f"b{i}", offset)]
        # Pads and dilations are spelled out: rten takes the defaults of a 2-D convolution.
        shape = dict(kernel_shape=[weight.shape[2]], strides=[stride], pads=[0, 0], dilations=[1])
        nodes.append(helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], **shape))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    constants += [tensor("wd", dense), tensor("bd", bias)]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "wd", "bd"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return model("watch", nodes, constants, channels, window, "probabilities", dense.shape[1], [("", OPSET)])


def forest(fitted, channels, window):
    """An isolation forest as ONE tree operator, features in the graph: `score` f32[batch, 1] = 2^(-mean path / c)."""
    axis = [2]
    constants = [
        tensor("first", np.array([0], np.int64)),
        tensor("one", np.array([1], np.int64)),
        tensor("last", np.array([-1], np.int64)),
        tensor("end", np.array([window], np.int64)),
        tensor("time", np.array([2], np.int64)),
        tensor("per_length", np.array([-np.log(2) / average_path(fitted.max_samples_)], np.float32)),
    ]
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["window"], ["mean_kept"], axes=axis, keepdims=1),
        node("Flatten", ["mean_kept"], ["mean"], axis=1),
        node("Sub", ["window", "mean_kept"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squared"]),
        node("ReduceMean", ["squared"], ["variance"], axes=axis, keepdims=0),
        node("Sqrt", ["variance"], ["deviation"]),
        node("ReduceMax", ["window"], ["largest"], axes=axis, keepdims=0),
        node("ReduceMin", ["window"], ["smallest"], axes=axis, keepdims=0),
        node("Slice", ["window", "one", "end", "time"], ["later"]),
        node("Slice", ["window", "first", "last", "time"], ["earlier"]),
        node("Sub", ["later", "earlier"], ["steps"]),
        node("Abs", ["steps"], ["steps_size"]),
        node("ReduceMean", ["steps_size"], ["step"], axes=axis, keepdims=0),
        node("Concat", ["mean", "deviation", "largest", "smallest", "step"], ["features"], axis=1),
        node("TreeEnsembleRegressor", ["features"], ["length"], domain="ai.onnx.ml", **trees(fitted)),
        node("Mul", ["length", "per_length"], ["exponent"]),
        node("Exp", ["exponent"], ["score"]),
    ]
    return model("watch-forest", nodes, constants, channels, window, "score", 1, [("", OPSET), ("ai.onnx.ml", ML_OPSET)])


def trees(fitted):
    """The operator's attributes: at each leaf the depth, plus what a longer tree would have added."""
    rows = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")}
    leaves = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}
    for t, estimator in enumerate(fitted.estimators_):
        tree = estimator.tree_
        depth = np.zeros(tree.node_count)
        for n in range(tree.node_count):
            left, right = tree.children_left[n], tree.children_right[n]
            leaf = left < 0
            if leaf:
                leaves["treeids"].append(t)
                leaves["nodeids"].append(n)
                leaves["ids"].append(0)
                leaves["weights"].append(float(depth[n] + average_path(tree.n_node_samples[n])))
            else:
                depth[left] = depth[right] = depth[n] + 1
            rows["treeids"].append(t)
            rows["nodeids"].append(n)
            rows["featureids"].append(0 if leaf else int(tree.feature[n]))
            rows["values"].append(0.0 if leaf else rounded_down(tree.threshold[n]))
            rows["modes"].append("LEAF" if leaf else "BRANCH_LEQ")
            rows["truenodeids"].append(0 if leaf else int(left))
            rows["falsenodeids"].append(0 if leaf else int(right))
    attributes = {f"nodes_{k}": v for k, v in rows.items()} | {f"target_{k}": v for k, v in leaves.items()}
    return attributes | {"n_targets": 1, "aggregate_function": "AVERAGE", "post_transform": "NONE"}


def average_path(samples):
    """Mean path length of an unsuccessful search among `samples` (Liu, Ting, Zhou 2008)."""
    if samples <= 1:
        return 0.0
    if samples == 2:
        return 1.0
    return 2.0 * (np.log(samples - 1.0) + np.euler_gamma) - 2.0 * (samples - 1.0) / samples


def rounded_down(value):
    """The largest f32 not above `value`: then `x <= value` decides alike for every f32 x."""
    single = np.float32(value)
    return float(np.nextafter(single, np.float32(-np.inf)) if float(single) > value else single)


def tensor(name, values):
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def model(name, nodes, constants, channels, window, output, width, opsets):
    for node in nodes:
        node.name = node.output[0]  # errors name the node
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", channels, window])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
        constants,
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in opsets],
        ir_version=IR_VERSION,
        producer_name="weir models/train.py",
    )
    onnx.checker.check_model(made)
    return made.SerializeToString(deterministic=True)
