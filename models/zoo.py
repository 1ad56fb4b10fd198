#!/usr/bin/env python3
"""Makes one small model of each kind that people bring, for models/zoo. See README.md.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python zoo.py

Writes *.onnx, *.toml, golden/*.json and SHA256SUMS in zoo/, and zoo/scores.json; half a CPU minute. `watch-*` are trained on the
recordings of train.py, subjects 1 to 6, and tested on 8 to 10. `pump-*` are trained on numbers drawn from a seed, which
stand for a pump: their scores say that the model learned, not that it would find anything on a real one.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # sums in another order give other last digits

import hashlib
import json
import pathlib
import shutil
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime import quantization
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import train
import trees_to_tensors
from export import IR_VERSION, OPSET, tensor

HERE = pathlib.Path(__file__).resolve().parent
ZOO = HERE / "zoo"
READINGS = ["temperature", "vibration", "current", "pressure", "flow"]
STATES = ["fine", "cavitation", "bearing"]
OPSETS = {"": OPSET, "ai.onnx.ml": 3}
CASES = 8
# What streams may ask for instead of a model, by how its name begins.
ANSWERS = {
    "pump-autoencoder": "pump-anomaly",
    "pump-isolation": "pump-anomaly",
    "pump-lstm": "pump-forecast",
    "pump-": "pump-state",
    "watch-forest": "wearing",
    "watch-": "activity",
}
# One tolerance for all that computes in f32; int8 rounds at other places on the two engines (README.md).
TOLERANCE, TOLERANCE_INT8 = 1e-4, 0.05


def main():
    shutil.rmtree(ZOO, ignore_errors=True)
    (ZOO / "golden").mkdir(parents=True)
    scores = {}
    for make in (mlp, autoencoder, boosting, pipeline, isolation, lstm):
        scores |= make()
    recordings, _ = train.load()
    scores |= gru(recordings) | int8(train.windows(recordings)) | forest(train.windows(recordings))
    made = sorted(path for pattern in ("*.onnx", "*.toml", "golden/*.json") for path in ZOO.glob(pattern))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ZOO)}" for path in made]
    (ZOO / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    (ZOO / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


# ---- the data

def pump(rng, count):
    """Readings of a pump f32[count, 5], and its states: 0 fine, 1 cavitation, 2 a bad bearing."""
    state = rng.choice(3, count, p=[0.6, 0.2, 0.2])
    load = rng.uniform(0.3, 1.0, count)
    noise = rng.standard_normal((5, count))
    temperature = 40 + 25 * load + 9 * (state == 2) + 3 * noise[0]
    vibration = np.exp(0.5 + 0.6 * load + 0.7 * (state == 2) + 0.5 * (state == 1) + 0.25 * noise[1])
    current = 3 + 6 * load - 1.0 * (state == 1) + 0.4 * noise[2]
    pressure = 2 + 4 * load - 1.2 * (state == 1) + 0.3 * noise[3]
    flow = 20 + 60 * load - 9 * (state == 1) + 3 * noise[4]
    readings = np.stack([temperature, vibration, current, pressure, flow], axis=1)
    return np.round(readings, 2).astype(np.float32), state


def temperatures(rng, seconds):
    """Current and temperature f32[seconds, 2], once a second: heat follows load with a time constant of two minutes."""
    load, heat, rows = 0.5, 50.0, []
    for _ in range(seconds):
        if rng.random() < 0.01:
            load = rng.uniform(0.2, 1.0)
        heat += (35 + 40 * load - heat) / 120
        rows.append((3 + 6 * load + 0.2 * rng.standard_normal(), heat + 0.1 * rng.standard_normal()))
    return np.round(np.array(rows), 2).astype(np.float32)


def split(seed=1):
    rng = np.random.default_rng(seed)
    return pump(rng, 2000), pump(rng, 1000)


# ---- the models

def mlp():
    """A multi-layer perceptron with a softmax."""
    (x, y), (x_test, y_test) = split()
    mean, std = statistics(x)
    fitted = MLPClassifier((16, 16), max_iter=2000, random_state=1).fit((x - mean) / std, y)
    nodes, constants, last = dense(fitted, "reading")
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    model = graph("pump-mlp", nodes, constants, [("reading", ["batch", 5])], [("probabilities", ["batch", 3])])
    manifest("pump-mlp", model, "classification", reading(mean, std), output("probabilities", STATES))
    golden("pump-mlp", x_test[:CASES, :, None], lambda w: run(model, {"reading": (w[:, :, 0] - mean) / std})[0])
    return {"pump-mlp": {"test": accuracy(run(model, {"reading": (x_test - mean) / std})[0], y_test)}}


def autoencoder():
    """An autoencoder whose output is what it makes of its input: the score is how far that is off."""
    (x, y), (x_test, y_test) = split()
    mean, std = statistics(x)
    scaled, scaled_test = (x - mean) / std, (x_test - mean) / std
    fitted = MLPRegressor(hidden_layer_sizes=(8, 2, 8), activation="tanh", max_iter=2000, random_state=1).fit(scaled[y == 0], scaled[y == 0])
    nodes, constants, last = dense(fitted, "reading", "Tanh")
    nodes.append(helper.make_node("Identity", [last], ["reconstruction"]))
    model = graph("pump-autoencoder", nodes, constants, [("reading", ["batch", 5])], [("reconstruction", ["batch", 5])])

    def score(rows):
        return ((run(model, {"reading": rows})[0] - rows) ** 2).mean(1, keepdims=True)

    threshold = float(np.round(np.quantile(score(scaled[y == 0]).astype(np.float64), 0.99), 3))
    made = output("reconstruction", ["normal", "anomaly"]) + ['score = "reconstruction-error"']
    manifest("pump-autoencoder", model, "anomaly", reading(mean, std), made, [f"anomaly_score = {threshold}"])
    golden("pump-autoencoder", x_test[:CASES, :, None], lambda w: score((w[:, :, 0] - mean) / std))
    found = score(scaled_test)[:, 0] >= threshold
    shares = {s: train.rounded(found[y_test == i].mean()) for i, s in enumerate(STATES)}
    return {"pump-autoencoder": {"threshold": threshold, "test_called_anomalous": shares}}


def boosting():
    """Gradient boosting as skl2onnx writes it, and the same as tensor operators."""
    (x, y), (x_test, y_test) = split()
    fitted = GradientBoostingClassifier(n_estimators=25, max_depth=3, random_state=1).fit(x, y)
    model = to_onnx(fitted, x[:1], options={"zipmap": False}, target_opset=OPSETS)
    return both("pump-boosting", model, x_test, y_test)


def pipeline():
    """A scikit-learn pipeline, scaler and random forest, as skl2onnx writes it, and the same as tensor operators."""
    (x, y), (x_test, y_test) = split()
    fitted = make_pipeline(StandardScaler(), RandomForestClassifier(20, max_depth=6, random_state=1)).fit(x, y)
    model = to_onnx(fitted, x[:1], options={"zipmap": False}, target_opset=OPSETS)
    return both("pump-pipeline", model, x_test, y_test)


def both(name, model, x_test, y_test):
    source = named(model)
    converted = trees_to_tensors.convert(source)
    expected, scores = run(source, {"X": x_test}, ["probabilities"])[0], {}
    for each, made in ((name, source), (f"{name}-tensors", converted)):
        found = run(made, {"X": x_test}, ["probabilities"])[0]
        scores[each] = {"test": accuracy(found, y_test), "difference": float(np.abs(found - expected).max())}
        manifest(each, made, "classification", reading(source="X"), output("probabilities", STATES))
        golden(each, x_test[:CASES, :, None], lambda w: run(source, {"X": w[:, :, 0]}, ["probabilities"])[0])
    return scores


def isolation():
    """An isolation forest as skl2onnx writes it, with an operator and a lookup for each tree: right, and very slow."""
    (x, _), (x_test, _) = split()
    fitted = IsolationForest(n_estimators=12, max_samples=32, random_state=1).fit(x)
    model = named(to_onnx(fitted, x[:1], target_opset=OPSETS))
    made = output("scores", []) + []
    # Below 0 is anomalous for scikit-learn; the manifest counts upwards, so the model is kept as a plain value.
    manifest("pump-isolation", model, "regression", reading(source="X"), made)
    golden("pump-isolation", x_test[:CASES, :, None], lambda w: run(model, {"X": w[:, :, 0]}, ["scores"])[0])
    return {"pump-isolation": {"nodes": len(model.graph.node)}}


def lstm():
    """An LSTM that forecasts a temperature two minutes ahead; its state is carried from window to window."""
    rng, hidden, window, ahead = np.random.default_rng(3), 24, 10, 120
    train_rows, test_rows = temperatures(rng, 12000), temperatures(rng, 6000)
    mean, std = statistics(train_rows)
    constants = recurrent(rng, 4, 2, hidden)
    nodes = [
        helper.make_node("Transpose", ["window"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r", "b", "", "h_in", "c_in"], ["", "h_out", "c_out"], hidden_size=hidden),
        helper.make_node("Squeeze", ["h_out", "first"], ["hidden"]),
    ]
    state = [1, "batch", hidden]
    inputs = [("window", ["batch", window, 2]), ("h_in", state), ("c_in", state)]
    body = graph("pump-lstm", nodes, constants, inputs, [("hidden", ["batch", hidden]), ("h_out", state), ("c_out", state)])

    def rows(values):
        cut = ((values - mean) / std)[: len(values) // window * window].reshape(-1, 1, window, 2)
        h = c = np.zeros((1, 1, hidden), np.float32)
        seen = []
        for one in cut:
            out, h, c = run(body, {"window": one, "h_in": h, "c_in": c})
            seen.append(out[0])
        last = np.arange(len(cut)) * window + window - 1
        known = last + ahead < len(values)
        return np.array(seen)[known], values[last[known] + ahead, 1], values[last[known], 1]

    seen, truth, _ = rows(train_rows)
    readout = Ridge(1e-3).fit(seen, truth)
    head(nodes, constants, readout.coef_[None, :], [readout.intercept_], "forecast")
    model = graph("pump-lstm", nodes, constants, inputs, [("forecast", ["batch", 1]), ("h_out", state), ("c_out", state)])
    given = ["name = \"window\"", "channels = [\"current\", \"temperature\"]", f"window = {window}", "rate_hz = 1.0"]
    given += ['dtype = "f32"', 'layout = "time-first"']
    carried = ['inputs = ["h_in", "c_in"]', 'outputs = ["h_out", "c_out"]', "gap_max_s = 5.0"]
    sections = {"input": given, "standardise": standardise(mean, std), "state": carried}
    manifest("pump-lstm", model, "regression", sections, output("forecast", []))
    windows = [test_rows[i * window : (i + 1) * window] for i in range(12)]
    sequences = [windows[:6], windows[6:]]
    golden_sequences("pump-lstm", sequences, lambda w, s: run(
        model, {"window": ((w - mean) / std)[None], "h_in": s[0], "c_in": s[1]}), [np.zeros((1, 1, hidden), np.float32)] * 2)
    seen, truth, now = rows(test_rows)
    errors = [train.rounded(np.abs(v - truth).mean()) for v in (readout.predict(seen), now)]
    return {"pump-lstm": {"mean_error_celsius": errors[0], "of_saying_no_change": errors[1]}}


def gru(recordings):
    """A GRU that names the exercise twice a second, from half a second and the state that it carries."""
    rng, hidden, window = np.random.default_rng(4), 48, 25
    raw = np.concatenate([v for who, _, _, v in recordings if who <= 6]).astype(np.float32)
    mean, std = statistics(raw)
    constants = recurrent(rng, 3, 6, hidden)
    nodes = [
        helper.make_node("Transpose", ["window"], ["steps"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["steps", "w", "r", "b", "", "h_in"], ["", "h_out"], hidden_size=hidden, linear_before_reset=1),
        helper.make_node("Squeeze", ["h_out", "first"], ["hidden"]),
    ]
    state = [1, "batch", hidden]
    inputs = [("window", ["batch", 6, window]), ("h_in", state)]
    body = graph("watch-gru", nodes, constants, inputs, [("hidden", ["batch", hidden]), ("h_out", state)])
    session = onnxruntime.InferenceSession(body.SerializeToString(), train.onnx_options())

    def rows(subjects):
        seen, labels = [], []
        for who, _, label, values in recordings:
            if who not in subjects:
                continue
            cut = ((values.astype(np.float32) - mean) / std)[: len(values) // window * window].reshape(-1, window, 6)
            h = np.zeros((1, 1, hidden), np.float32)
            for one in cut:
                out, h = session.run(None, {"window": np.ascontiguousarray(one.T)[None], "h_in": h})
                seen.append(out[0])
                labels.append(label)
        return np.array(seen), np.array(labels)

    seen, labels = rows(range(1, 7))
    readout = LogisticRegression(C=1.0, max_iter=2000).fit(seen, labels)
    head(nodes, constants, readout.coef_, readout.intercept_, "logits")
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    model = graph("watch-gru", nodes, constants, inputs, [("probabilities", ["batch", 7]), ("h_out", state)])
    carried = ['inputs = ["h_in"]', 'outputs = ["h_out"]', "gap_max_s = 1.0"]
    manifest("watch-gru", model, "classification", watch(mean, std, window) | {"state": carried}, output("probabilities", train.LABELS))
    picked = [next(v for who, _, label, v in recordings if who == 8 and label == i) for i in (0, 4)]
    sequences = [[v[i * window : (i + 1) * window] for i in range(6)] for v in picked]
    golden_sequences("watch-gru", sequences, lambda w, s: run(
        model, {"window": ((w.astype(np.float32) - mean) / std).T[None], "h_in": s[0]}), [np.zeros((1, 1, hidden), np.float32)], True)
    seen, labels = rows((8, 9, 10))
    return {"watch-gru": {"test": train.rounded(readout.score(seen, labels))}}


def int8(data):
    """watch-large with weights and activations in int8 (QDQ), calibrated on windows of subjects 1 to 6."""
    mean, std = watch_statistics()
    scaled = np.ascontiguousarray(((data["raw"].astype(np.float32) - mean) / std).transpose(0, 2, 1))
    rows = scaled[np.flatnonzero(data["subject"] <= 6)[::20]]

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(rows)

        def get_next(self):
            row = next(self.left, None)
            return None if row is None else {"window": row[None]}

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "int8.onnx"
        # Weights of 7 bits: x86 processors without VNNI add two products of 8 bits in 16, and saturate. Layers alone: quantised
        # probabilities would come in steps of 1/255.
        quantization.quantize_static(
            HERE / "watch-large.onnx",
            path,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            op_types_to_quantize=["Conv", "Gemm"],
        )
        model = onnx.load(path)
    model.producer_name = "weir models/zoo.py"
    manifest("watch-int8", model, "classification", watch(mean, std, train.WINDOW), output("probabilities", train.LABELS))
    test = data["subject"] >= 8
    picked = data["raw"][train.pick(data, test)]
    golden("watch-int8", picked.transpose(0, 2, 1), lambda w: run(
        model, {"window": (w - mean[:, None]) / std[:, None]})[0], TOLERANCE_INT8)
    large = onnx.load(HERE / "watch-large.onnx")
    found = {n: accuracy(run(m, {"window": scaled[test]})[0], data["label"][test]) for n, m in (("test", model), ("test_of_f32", large))}
    return {"watch-int8": found}


def forest(data):
    """watch-forest as tensor operators."""
    mean, std = watch_statistics()
    source = onnx.load(HERE / "watch-forest.onnx")
    model = trees_to_tensors.convert(source)
    threshold = next(line for line in (HERE / "watch-forest.toml").read_text().splitlines() if line.startswith("anomaly_score"))
    made = output("score", ["normal", "anomaly"])
    manifest("watch-forest-tensors", model, "anomaly", watch(mean, std, train.WINDOW), made, [threshold])
    scaled = np.ascontiguousarray(((data["raw"][data["subject"] >= 8].astype(np.float32) - mean) / std).transpose(0, 2, 1))
    difference = np.abs(run(model, {"window": scaled})[0] - run(source, {"window": scaled})[0]).max()
    picked = data["raw"][train.pick(data, data["subject"] >= 8)]
    golden("watch-forest-tensors", picked.transpose(0, 2, 1), lambda w: run(
        source, {"window": (w - mean[:, None]) / std[:, None]})[0])
    return {"watch-forest-tensors": {"difference": float(difference)}}


# ---- their parts

def dense(fitted, last, activation="Relu"):
    """The layers of a scikit-learn MLP, without what comes after the last one."""
    nodes, constants = [], []
    layers = list(zip(fitted.coefs_, fitted.intercepts_))
    for i, (weight, bias) in enumerate(layers):
        constants += [tensor(f"w{i}", weight.astype(np.float32)), tensor(f"b{i}", bias.astype(np.float32))]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"d{i}"]))
        last = f"d{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node(activation, [last], [f"a{i}"]))
            last = f"a{i}"
    return nodes, constants, last


def recurrent(rng, gates, channels, hidden):
    """Weights of a recurrent layer: drawn, not trained (an echo state network); only what reads its state is trained."""
    inward = rng.standard_normal((1, gates * hidden, channels)) * 0.5
    within = rng.standard_normal((1, gates * hidden, hidden)) * 0.9 / np.sqrt(hidden)
    offset = rng.standard_normal((1, 2 * gates * hidden)) * 0.2
    made = dict(w=inward, r=within, b=offset)
    return [tensor(k, v.astype(np.float32)) for k, v in made.items()] + [tensor("first", np.array([0], np.int64))]


def head(nodes, constants, weight, bias, name):
    constants += [tensor("wo", np.asarray(weight, np.float32)), tensor("bo", np.asarray(bias, np.float32))]
    nodes.append(helper.make_node("Gemm", ["hidden", "wo", "bo"], [name], transB=1))


def graph(name, nodes, constants, inputs, outputs):
    for node in nodes:
        node.name = next(o for o in node.output if o)  # errors name the node
    values = lambda pairs: [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in pairs]
    made = helper.make_model(
        helper.make_graph(nodes, name, values(inputs), values(outputs), constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="weir models/zoo.py",
    )
    onnx.checker.check_model(made)
    return made


def named(model):
    """What skl2onnx made, with its batch dimension named, as the others have it."""
    for value in list(model.graph.input) + list(model.graph.output):
        dim = value.type.tensor_type.shape.dim
        if dim and not dim[0].dim_value:
            dim[0].dim_param = "batch"
    model.doc_string = ""
    return model


def run(model, inputs, names=None):
    session = onnxruntime.InferenceSession(model.SerializeToString(), train.onnx_options())
    return session.run(names, {k: np.ascontiguousarray(v, np.float32) for k, v in inputs.items()})


# ---- what is written

def reading(mean=None, std=None, source="reading"):
    names = ", ".join(f'"{n}"' for n in READINGS)
    given = [f'name = "{source}"', f"channels = [{names}]", "window = 1", "rate_hz = 1.0", 'dtype = "f32"']
    return {"input": given} | ({} if mean is None else {"standardise": standardise(mean, std)})


def watch(mean, std, window):
    names = ", ".join(f'"{n}"' for n in train.CHANNELS)
    given = ['name = "window"', f"channels = [{names}]", f"window = {window}", f"rate_hz = {train.RATE_HZ}.0", 'dtype = "f32"']
    return {"input": given, "standardise": standardise(mean, std)}


def output(name, labels):
    return [f'name = "{name}"'] + (["labels = [" + ", ".join(f'"{v}"' for v in labels) + "]"] if labels else [])


def standardise(mean, std):
    numbers = lambda values: "[" + ", ".join(f"{float(v):.4f}" for v in values) + "]"
    return [f"mean = {numbers(mean)}", f"std = {numbers(std)}"]


def statistics(rows):
    """Mean and deviation by channel, to the digits that the manifest has."""
    return tuple(np.round(f(0, dtype=np.float64), 4).astype(np.float32) for f in (rows.mean, rows.std))


def watch_statistics():
    """Those of the reference models."""
    lines = (HERE / "watch-large.toml").read_text().splitlines()
    of = lambda key: np.array(json.loads(next(l for l in lines if l.startswith(key)).split("=")[1]), np.float32)
    return of("mean"), of("std")


def manifest(name, model, task, sections, output_lines, thresholds=()):
    data = model.SerializeToString(deterministic=True)
    (ZOO / f"{name}.onnx").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    lines = ["# Written by zoo.py.", f'name = "{name}"', 'version = "1"', f'task = "{task}"', f'file = "{name}.onnx"']
    lines[4:4] = [f'answers = "{next(v for k, v in ANSWERS.items() if name.startswith(k))}"']
    lines += [f'sha256 = "{digest}"']
    for section, content in (sections | {"output": output_lines} | ({"thresholds": thresholds} if thresholds else {})).items():
        lines += ["", f"[{section}]", *content]
    (ZOO / f"{name}.toml").write_text("\n".join(lines) + "\n")


def golden(name, windows, outputs, tolerance=TOLERANCE):
    """Raw windows [channels][time], and what the native runtime makes of them, one at a time."""
    cases = [case(w, outputs(w[None].astype(np.float32))[0]) for w in windows]
    write_golden(name, cases, tolerance)


def golden_sequences(name, sequences, step, state, rounded=False):
    """Windows of two devices in turn; `step` returns outputs and new state, which the next window of the device is given."""
    states, cases = [state for _ in sequences], []
    for windows in zip(*sequences):
        for device, window in enumerate(windows):
            outputs, *states[device] = step(window, states[device])
            cases.append({"device": device} | case(window.T, outputs[0]))
    write_golden(name, cases, TOLERANCE)


def case(window, outputs):
    numbers = [[float(f"{v:.7g}") for v in channel] for channel in np.asarray(window)]
    numbers = [[int(v) if v == int(v) else v for v in channel] for channel in numbers]
    return {"window": numbers, "outputs": [float(f"{v:.7g}") for v in np.ravel(outputs)]}


def write_golden(name, cases, tolerance):
    text = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (ZOO / "golden" / f"{name}.json").write_text(f'{{"model":"{name}","tolerance":{tolerance},"cases":[\n{text}\n]}}\n')


def accuracy(probabilities, labels):
    return train.rounded((probabilities.argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
