#!/usr/bin/env python3
"""Trains, exports, scores and packs the reference models. See README.md.

    python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python train.py

Writes *.onnx, *.toml, golden/*.json, recordings/*.csv, scores.json and SHA256SUMS beside itself; about one CPU minute
on one core. With --leave-one-out it writes nothing and prints the accuracy on each of subjects 1 to 7 of a model trained
on the other six, two CPU minutes.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # sums in another order give other last digits

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnxruntime
from sklearn.ensemble import IsolationForest

import export
import net

HERE = pathlib.Path(__file__).resolve().parent
SEGLEARN = "1.2.5"
SEGLEARN_SHA256 = "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
CHANNELS = ["ax", "ay", "az", "gx", "gy", "gz"]
LABELS = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"]
RATE_HZ = 50
WINDOW = 128  # 2.56 s: most of one repetition
STEP = 64
VERSION = "1"
# What streams may ask for instead of a model.
ANSWERS = {"classification": "activity", "anomaly": "wearing"}
# Chosen by leaving one subject out of 1 to 7 (README.md); the test subjects 8 to 10 had no say.
SMALL = dict(convs=[(8, 5, 2)], dropout=0.0, epochs=80, rate=1e-2, decay=1e-3, rotate=0.10, scale=0.10, seeds=range(1, 6))
LARGE = dict(
    convs=[(48, 7, 2), (96, 5, 2), (120, 5, 2)],
    dropout=0.5,
    epochs=20,
    rate=3e-3,
    decay=1e-2,
    rotate=0.30,
    scale=0.20,
    seeds=range(1, 4),
)
SENT_ON_SHARE = 0.40  # of the validation windows at most this share is sent on
RECORDING_SAMPLES = 1000  # 20 s of each exercise


def main():
    recordings, terms = load()
    data = windows(recordings)
    if sys.argv[1:] == ["--leave-one-out"]:
        return leave_one_out(data)
    (HERE / "recordings").mkdir(exist_ok=True)
    for place in ("LICENSE-seglearn", "recordings/LICENSE"):
        (HERE / place).write_bytes(terms)
    train_rows, validation, test = data["subject"] <= 6, data["subject"] == 7, data["subject"] >= 8
    raw = data["raw"].astype(np.float32)
    mean = raw[train_rows].mean((0, 1), dtype=np.float64)
    std = raw[train_rows].std((0, 1), dtype=np.float64)
    # What the manifest says, to the digit: the model must see what Weir will compute.
    mean, std = np.round(mean, 4).astype(np.float32), np.round(std, 4).astype(np.float32)
    x = (raw - mean) / std
    scores = {"windows": {k: int(v.sum()) for k, v in (("train", train_rows), ("validation", validation), ("test", test))}}

    outputs = {}
    for name, spec in (("watch-small", SMALL), ("watch-large", LARGE)):
        trained = best(spec, x, data["label"], mean, std, train_rows, validation)
        model = export.classifier(trained.folded(), trained.params["wd"], trained.params["bd"], len(CHANNELS), WINDOW)
        (HERE / f"{name}.onnx").write_bytes(model)
        outputs[name] = run(model, x)
        difference = float(np.abs(outputs[name] - trained.forward(x, False)[0]).max())
        assert difference < 1e-4, f"{name}: the exported model differs by {difference}"
        scores[name] = {"parameters": int(trained.count())} | classification_scores(outputs[name], data, validation, test)

    small, large = outputs["watch-small"], outputs["watch-large"]
    threshold = best_threshold(small[validation], large[validation], data["label"][validation])
    scores["cascade"] = cascade_scores(small, large, data["label"], validation, test, threshold)
    band = {"confidence_low": 0.0, "confidence_high": threshold}
    write_manifest("watch-small", "classification", mean, std, "probabilities", band)
    write_manifest("watch-large", "classification", mean, std, "probabilities", {}, int16=True)
    for name in outputs:
        write_golden(name, data["raw"], outputs[name], pick(data, test))

    anomaly(x, data, mean, std, train_rows, validation, test, scores)
    write_recordings(recordings)
    made = sorted(path for pattern in ("*.onnx", "*.toml", "golden/*.json", "recordings/*.csv") for path in HERE.glob(pattern))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(HERE)}" for path in made]
    (HERE / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    (HERE / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


def load():
    """The recordings, as int16 milli-g and milli-rad/s: [(subject, side, label, int16[samples, 6])], and their licence."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder, f"seglearn=={SEGLEARN}"]
        subprocess.run([sys.executable, "-m", *command], check=True)
        wheel = next(pathlib.Path(folder).glob("seglearn-*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        # Before unpickling: a pickle runs code.
        assert found == SEGLEARN_SHA256, f"{wheel.name}: sha256 {found}, expected {SEGLEARN_SHA256}"
        with zipfile.ZipFile(wheel) as archive:
            with archive.open("seglearn/data/watch_dataset.npy") as file:
                data = np.load(file, allow_pickle=True).item()
            terms = archive.read(f"seglearn-{SEGLEARN}.dist-info/LICENSE")
    assert list(data["y_labels"]) == LABELS
    recordings = []
    for values, label, subject, side in zip(data["X"], data["y"], data["subject"], data["side"]):
        counts = np.rint(values * 1000).clip(-32768, 32767).astype(np.int16)
        recordings.append((int(subject), "R" if side else "L", int(label), counts))
    return recordings, terms


def windows(recordings):
    raw, label, subject = [], [], []
    for who, _, exercise, values in recordings:
        for start in range(0, len(values) - WINDOW + 1, STEP):
            raw.append(values[start : start + WINDOW])
            label.append(exercise)
            subject.append(who)
    return {"raw": np.array(raw), "label": np.array(label), "subject": np.array(subject)}


def leave_one_out(data):
    """How the models were chosen: one seed, subjects 1 to 7 only."""
    raw = data["raw"].astype(np.float32)
    for name, spec in (("watch-small", SMALL), ("watch-large", LARGE)):
        accuracies = []
        for held_out in range(1, 8):
            rest, held = (data["subject"] <= 7) & (data["subject"] != held_out), data["subject"] == held_out
            mean, std = raw[rest].mean((0, 1)), raw[rest].std((0, 1))
            model = fit(spec, 1, (raw[rest] - mean) / std, data["label"][rest], mean, std)
            found = model.forward((raw[held] - mean) / std, False)[0].argmax(1)
            accuracies.append(float((found == data["label"][held]).mean()))
        print(name, rounded(np.mean(accuracies)), [rounded(a) for a in accuracies], flush=True)


def best(spec, x, labels, mean, std, train_rows, validation):
    """Of several seeds, the model that does best on the validation subject; the first wins a tie."""
    models = [fit(spec, seed, x[train_rows], labels[train_rows], mean, std) for seed in spec["seeds"]]
    return max(models, key=lambda m: (m.forward(x[validation], False)[0].argmax(1) == labels[validation]).mean())


def fit(spec, seed, x, labels, mean, std):
    """Trains on windows turned a little and scaled a little: watches sit differently, people are of different size."""
    rng = np.random.default_rng(seed)
    model = net.Net(rng, len(CHANNELS), spec["convs"], len(LABELS), spec["dropout"])

    def augment(batch, rng):
        raw = batch * std + mean
        turn = rotations(rng, len(batch), spec["rotate"])
        raw = np.concatenate([raw[..., :3] @ turn, raw[..., 3:] @ turn], axis=2)
        raw *= rng.uniform(1 - spec["scale"], 1 + spec["scale"], (len(batch), 1, 1))
        return ((raw - mean) / std).astype(np.float32)

    options = {k: spec[k] for k in ("epochs", "rate", "decay")}
    return net.train(model, x, labels, batch=64, smoothing=0.05, augment=augment, rng=rng, **options)


def rotations(rng, count, sigma):
    """Rotation matrices [count, 3, 3] about random axes by angles of about `sigma` radians (Rodrigues)."""
    vector = rng.standard_normal((count, 3)) * sigma
    angle = np.linalg.norm(vector, axis=1, keepdims=True) + 1e-9
    x, y, z = (vector / angle).T
    zero = np.zeros(count)
    cross = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)
    angle = angle[:, :, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def run(model, x):
    """Outputs of the exported model for standardised windows [rows, time, channels]."""
    session = onnxruntime.InferenceSession(model, onnx_options(), providers=["CPUExecutionProvider"])
    channels_first = np.ascontiguousarray(x.transpose(0, 2, 1), np.float32)
    return np.concatenate([session.run(None, {"window": channels_first[i : i + 256]})[0] for i in range(0, len(x), 256)])


def onnx_options():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def classification_scores(outputs, data, validation, test):
    right = outputs.argmax(1) == data["label"]
    return {
        "validation": rounded(right[validation].mean()),
        "test": rounded(right[test].mean()),
        "test_by_class": {n: rounded(right[test & (data["label"] == i)].mean()) for i, n in enumerate(LABELS)},
        "test_by_subject": {str(s): rounded(right[data["subject"] == s].mean()) for s in (8, 9, 10)},
    }


def best_threshold(small, large, label):
    """The limit to the small model's confidence that makes the cascade most accurate within SENT_ON_SHARE; the lowest of equals."""
    confidence, found = small.max(1), []
    for limit in np.round(np.arange(0.0, 1.0, 0.001), 3):
        sent = confidence < limit
        if sent.mean() <= SENT_ON_SHARE:
            right = np.where(sent, large.argmax(1), small.argmax(1)) == label
            found.append((right.sum(), -limit))
    return float(-max(found)[1])


def cascade_scores(small, large, label, validation, test, threshold):
    """What sending the windows of low confidence to the large model gives, against as many at random."""
    rows = []
    for limit in sorted({0.0, 0.4, 0.5, threshold, 0.7, 0.8, 0.9, 1.01}):
        row = {"confidence_below": limit}
        for name, part in (("validation", validation), ("test", test)):
            sent = small[part].max(1) < limit
            small_right = small[part].argmax(1) == label[part]
            large_right = large[part].argmax(1) == label[part]
            share = sent.mean()
            row[name] = {
                "sent_on": rounded(share),
                "accuracy": rounded(np.where(sent, large_right, small_right).mean()),
                "same_share_at_random": rounded(share * large_right.mean() + (1 - share) * small_right.mean()),
            }
        rows.append(row)
    return {"threshold": threshold, "curve": rows}


def anomaly(x, data, mean, std, train_rows, validation, test, scores):
    """An isolation forest over simple features: does the sensor still look like a sensor on an arm?"""
    name = "watch-forest"
    forest = IsolationForest(n_estimators=50, max_samples=128, random_state=1).fit(features(x[train_rows]))
    model = export.forest(forest, len(CHANNELS), WINDOW)
    (HERE / f"{name}.onnx").write_bytes(model)
    normal = run(model, x)[:, 0]
    difference = float(np.abs(normal + forest.score_samples(features(x))).max())
    assert difference < 1e-3, f"{name}: the exported model differs by {difference}"
    threshold = float(np.round(np.quantile(normal[validation].astype(np.float64), 0.99), 3))
    broken = faults(data["raw"][test])
    detected = {k: rounded((run(model, (v - mean) / std)[:, 0] >= threshold).mean()) for k, v in broken.items()}
    scores[name] = {
        "threshold": threshold,
        "false_alarms_validation": rounded((normal[validation] >= threshold).mean()),
        "false_alarms_test": rounded((normal[test] >= threshold).mean()),
        "detected_test": detected,
    }
    write_manifest(name, "anomaly", mean, std, "score", {"anomaly_score": threshold})
    rows = pick(data, test)[:4]
    cases = [data["raw"][rows]] + [v[i : i + 1] for i, v in enumerate(broken.values())]
    raw = np.rint(np.concatenate(cases)).astype(np.int32)
    write_golden(name, raw, run(model, (raw.astype(np.float32) - mean) / std), range(len(raw)))


def features(x):
    """The graph's own features, in numpy: mean, deviation, largest, smallest, mean step, per channel."""
    mean = x.mean(1)
    deviation = np.sqrt(((x - mean[:, None]) ** 2).mean(1))
    step = np.abs(np.diff(x, axis=1)).mean(1)
    return np.concatenate([mean, deviation, x.max(1), x.min(1), step], axis=1).astype(np.float32)


def faults(raw):
    """Faults of sensors, put into real windows (in milli-g and milli-rad/s)."""
    rng = np.random.default_rng(7)
    raw = raw.astype(np.float32)
    broken = {}
    broken["all channels stuck"] = np.repeat(raw[:, :1], WINDOW, axis=1)
    stuck = raw.copy()
    stuck[:, :, 3] = 0
    broken["one gyroscope axis at zero"] = stuck
    spikes = raw.copy()
    at = rng.integers(0, WINDOW, (len(raw), 4))
    for i in range(4):
        spikes[np.arange(len(raw)), at[:, i], 0] = 16000
    broken["four spikes to full scale"] = spikes
    noise = rng.standard_normal(raw.shape) * [1000, 1000, 1000, 2000, 2000, 2000]
    broken["noise of 1 g and 2 rad/s"] = raw + noise.astype(np.float32)
    broken["values three times too large"] = raw * 3
    return broken


def pick(data, test):
    """One window of each exercise, and one more, from the test subjects."""
    rows = np.flatnonzero(test)
    first = [rows[data["label"][rows] == i][10] for i in range(len(LABELS))]
    return np.array(first + [rows[-1]])


def write_golden(name, raw, outputs, rows):
    """Raw windows [channels][time] (before standardisation), and what the native runtime made of them."""
    cases = [{"window": raw[i].T.tolist(), "outputs": [float(f"{v:.7g}") for v in outputs[i]]} for i in rows]
    text = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "golden").mkdir(exist_ok=True)
    (HERE / "golden" / f"{name}.json").write_text(f'{{"model":"{name}","tolerance":1e-4,"cases":[\n{text}\n]}}\n')


def write_manifest(name, task, mean, std, output, thresholds, int16=False):
    digest = hashlib.sha256((HERE / f"{name}.onnx").read_bytes()).hexdigest()
    numbers = lambda values: "[" + ", ".join(f"{float(v):.4f}" for v in values) + "]"
    strings = lambda values: "[" + ", ".join(f'"{v}"' for v in values) + "]"
    labels = LABELS if task == "classification" else ["normal", "anomaly"]
    lines = [
        "# Written by train.py. Channels are int16 counts: milli-g (ax, ay, az) and milli-rad/s (gx, gy, gz).",
        f'name = "{name}"',
        f'version = "{VERSION}"',
        f'task = "{task}"',
        f'answers = "{ANSWERS[task]}"',
        f'file = "{name}.onnx"',
        f'sha256 = "{digest}"',
        "",
        "# Shape f32[batch, channels, window].",
        "[input]",
        'name = "window"',
        f"channels = {strings(CHANNELS)}",
        f"window = {WINDOW}",
        f"rate_hz = {RATE_HZ}.0",
        'dtype = "f32"',
        *(["# A window may be sent to it as int16: these are whole numbers, so nothing is lost.", "int16 = true"] if int16 else []),
        "",
        "# The model sees (value - mean) / std, per channel.",
        "[standardise]",
        f"mean = {numbers(mean)}",
        f"std = {numbers(std)}",
        "",
        "[output]",
        f'name = "{output}"',
        f"labels = {strings(labels)}",
    ]
    if thresholds:
        lines += ["", "[thresholds]"] + [f"{k} = {v}" for k, v in thresholds.items()]
    (HERE / f"{name}.toml").write_text("\n".join(lines) + "\n")


def write_recordings(recordings):
    """20 s of each exercise of the test subjects, for demonstrations."""
    for who in (8, 9, 10):
        lines = ["t_ms,subject,side,exercise," + ",".join(CHANNELS)]
        for label, exercise in enumerate(LABELS):
            side, values = next((s, v) for w, s, l, v in recordings if w == who and l == label and len(v) >= RECORDING_SAMPLES)
            for i, row in enumerate(values[:RECORDING_SAMPLES]):
                lines.append(f"{i * 1000 // RATE_HZ},{who},{side},{exercise}," + ",".join(map(str, row)))
        (HERE / "recordings" / f"watch_subject{who}.csv").write_text("\n".join(lines) + "\n")


def rounded(value):
    return round(float(value), 3)


if __name__ == "__main__":
    main()
