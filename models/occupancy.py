#!/usr/bin/env python3
"""Makes two models of which the larger is better in validation and worse in the field, for models/occupancy. See README.md.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python occupancy.py FOLDER

FOLDER holds datatraining.csv, datatest.csv and datatest2.csv of UCI data set 357 (an office, once a minute: temperature, humidity, light,
CO2, humidity ratio, and whether somebody was there). Light is left out: it all but is the answer. Writes *.onnx, *.toml, scores.json and
SHA256SUMS in occupancy/; half a CPU minute. Trained on the first file, chosen on the second; the third chose nothing.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # sums in another order give other last digits

import csv
import hashlib
import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from export import IR_VERSION, OPSET, tensor

OUT = pathlib.Path(__file__).resolve().parent / "occupancy"
CHANNELS = ["temperature", "humidity", "co2", "humidity_ratio"]
COLUMNS = [0, 1, 3, 4]
LABELS = ["empty", "occupied"]
FILES = {"training": "datatraining.csv", "validation": "datatest.csv", "field": "datatest2.csv"}


def main(folder):
    OUT.mkdir(exist_ok=True)
    data = {name: load(pathlib.Path(folder) / file) for name, file in FILES.items()}
    x, y = data["training"]
    mean, std = (np.round(f(0), 6) for f in (x.mean, x.std))
    scaled = {name: (((rows - mean) / std).astype(np.float32), labels) for name, (rows, labels) in data.items()}
    made = {"occupancy-small": small(scaled), "occupancy-large": large(scaled)}
    scores = {}
    for name, layers in made.items():
        model = graph(name, layers)
        write(name, model, mean, std)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = {k: session.run(None, {"reading": rows})[0].argmax(1) == labels for k, (rows, labels) in scaled.items()}
        scores[name] = {k: round(float(right.mean()), 4) for k, right in found.items()}
        scores[name]["parameters"] = int(sum(w.size + b.size for w, b in layers))
    (OUT / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in sorted(OUT.glob("*.onnx"))]
    (OUT / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    print(json.dumps(scores, indent=1))


def load(path):
    """Rows f64[count, 4] and whether somebody was there."""
    rows = [[float(v) for v in row[2:]] for row in list(csv.reader(path.open()))[1:]]
    rows = np.array(rows)
    return rows[:, COLUMNS], rows[:, 5].astype(int)


def small(scaled):
    """A logistic regression on temperature and humidity; the other two have no weight."""
    x, y = scaled["training"]
    fitted = LogisticRegression().fit(x[:, :2], y)
    weight = np.zeros((len(CHANNELS), 2))
    # Two outputs whose softmax is the logistic function of one.
    weight[:2, 1], bias = fitted.coef_[0], np.array([0.0, fitted.intercept_[0]])
    return [(weight, bias)]


def large(scaled):
    """A perceptron on all four, the best of six by the validation file."""
    x, y = scaled["training"]
    best = None
    for alpha in (0.1, 1.0, 10.0):
        for seed in (1, 2):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # twelve passes are meant to be few
                fitted = MLPClassifier((16, 16), alpha=alpha, max_iter=12, learning_rate_init=0.01, batch_size=64, random_state=seed).fit(x, y)
            score = fitted.score(*scaled["validation"])
            if best is None or score > best[0]:
                best = (score, fitted)
    layers = list(zip(best[1].coefs_, best[1].intercepts_))
    weight, bias = layers.pop()
    zeros = np.zeros_like(weight)
    return layers + [(np.hstack([zeros, weight]), np.array([0.0, bias[0]]))]


def graph(name, layers):
    nodes, constants, last = [], [], "reading"
    for i, (weight, bias) in enumerate(layers):
        constants += [tensor(f"w{i}", weight.astype(np.float32)), tensor(f"b{i}", bias.astype(np.float32))]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"d{i}"]))
        last = f"d{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [last], [f"a{i}"]))
            last = f"a{i}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    for node in nodes:
        node.name = node.output[0]  # errors name the node
    value = lambda n, width: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width])
    body = helper.make_graph(nodes, name, [value("reading", len(CHANNELS))], [value("probabilities", len(LABELS))], constants)
    made = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="weir models/occupancy.py"
    )
    onnx.checker.check_model(made)
    return made


def write(name, model, mean, std):
    data = model.SerializeToString(deterministic=True)
    (OUT / f"{name}.onnx").write_bytes(data)
    texts = lambda names: "[" + ", ".join(f'"{n}"' for n in names) + "]"
    numbers = lambda values: "[" + ", ".join(f"{float(v):.6f}" for v in values) + "]"
    lines = [
        "# Written by occupancy.py. Degrees Celsius, %, ppm, kg of water in a kg of air; one reading a minute.",
        f'name = "{name}"', 'version = "1"', 'task = "classification"', 'answers = "occupancy"', f'file = "{name}.onnx"',
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"', "",
        "[input]", 'name = "reading"', f"channels = {texts(CHANNELS)}", "window = 1", "rate_hz = 0.016667", 'dtype = "f32"', "",
        "[standardise]", f"mean = {numbers(mean)}", f"std = {numbers(std)}", "",
        "[output]", 'name = "probabilities"', f"labels = {texts(LABELS)}", "",
        "[thresholds]", "confidence_low = 0.0", "confidence_high = 0.75",
    ]
    (OUT / f"{name}.toml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
