"""A small 1-D convolutional classifier in plain numpy: forward, backward, Adam, and folding.

Layers are Conv (no bias) + batch norm + ReLU, then the mean over time, then one dense layer and a softmax.
Activations are float32 [batch, time, channels]: a convolution is then one matrix product over unfolded windows.
"""

import numpy as np

EPSILON = 1e-5
MOMENTUM = 0.9


class Net:
    """`convs` is a list of (channels_out, kernel, stride)."""

    def __init__(self, rng, channels, convs, classes, dropout):
        self.convs, self.dropout, self.rng = convs, dropout, rng
        self.params, self.running = {}, {}
        c_in = channels
        for i, (c_out, kernel, _) in enumerate(convs):
            scale = np.sqrt(2.0 / (c_in * kernel))
            self.params[f"w{i}"] = (rng.standard_normal((kernel * c_in, c_out)) * scale).astype(np.float32)
            self.params[f"gamma{i}"] = np.ones(c_out, np.float32)
            self.params[f"beta{i}"] = np.zeros(c_out, np.float32)
            self.running[i] = (np.zeros(c_out, np.float32), np.ones(c_out, np.float32))
            c_in = c_out
        self.params["wd"] = (rng.standard_normal((c_in, classes)) / np.sqrt(c_in)).astype(np.float32)
        self.params["bd"] = np.zeros(classes, np.float32)

    def count(self):
        return sum(p.size for p in self.params.values())

    def forward(self, x, train):
        saved = []
        for i, (_, kernel, stride) in enumerate(self.convs):
            cols, t_in = unfold(x, kernel, stride), x.shape
            z = cols @ self.params[f"w{i}"]
            if train:
                mean, var = z.mean((0, 1)), z.var((0, 1))
                old_mean, old_var = self.running[i]
                self.running[i] = (
                    MOMENTUM * old_mean + (1 - MOMENTUM) * mean,
                    MOMENTUM * old_var + (1 - MOMENTUM) * var,
                )
            else:
                mean, var = self.running[i]
            inverse = 1.0 / np.sqrt(var + EPSILON)
            normed = (z - mean) * inverse
            x = np.maximum(normed * self.params[f"gamma{i}"] + self.params[f"beta{i}"], 0)
            saved.append((cols, t_in, normed, inverse, x))
        pooled = x.mean(1)
        mask = None
        if train and self.dropout:
            mask = (self.rng.random(pooled.shape) >= self.dropout).astype(np.float32) / (1 - self.dropout)
            pooled = pooled * mask
        logits = pooled @ self.params["wd"] + self.params["bd"]
        return softmax(logits), (saved, pooled, mask)

    def backward(self, probabilities, target, state):
        saved, pooled, mask = state
        d = (probabilities - target) / len(target)
        grads = {"wd": pooled.T @ d, "bd": d.sum(0)}
        d = d @ self.params["wd"].T
        if mask is not None:
            d = d * mask
        steps = saved[-1][4].shape[1]
        d = np.repeat(d[:, None, :] / steps, steps, axis=1)
        for i in reversed(range(len(self.convs))):
            cols, shape_in, normed, inverse, out = saved[i]
            d = d * (out > 0)
            grads[f"gamma{i}"] = (d * normed).sum((0, 1))
            grads[f"beta{i}"] = d.sum((0, 1))
            d = d * self.params[f"gamma{i}"]
            d = inverse * (d - d.mean((0, 1)) - normed * (d * normed).mean((0, 1)))
            flat = cols.reshape(-1, cols.shape[2])
            grads[f"w{i}"] = flat.T @ d.reshape(-1, d.shape[2])
            if i:
                _, kernel, stride = self.convs[i]
                d = fold(d @ self.params[f"w{i}"].T, shape_in, kernel, stride)
        return grads

    def folded(self):
        """Convolutions as ONNX wants them, batch norm inside: [(weight [out, in, kernel], bias, stride)]."""
        layers = []
        for i, (c_out, kernel, stride) in enumerate(self.convs):
            mean, var = self.running[i]
            scale = self.params[f"gamma{i}"] / np.sqrt(var + EPSILON)
            weight = self.params[f"w{i}"] * scale
            weight = weight.reshape(kernel, -1, c_out).transpose(2, 1, 0)
            bias = self.params[f"beta{i}"] - mean * scale
            layers.append((np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), stride))
        return layers


class Adam:
    def __init__(self, params, decay):
        self.first = {k: np.zeros_like(v) for k, v in params.items()}
        self.second = {k: np.zeros_like(v) for k, v in params.items()}
        self.decay, self.step = decay, 0

    def update(self, params, grads, rate):
        self.step += 1
        for key, grad in grads.items():
            self.first[key] = 0.9 * self.first[key] + 0.1 * grad
            self.second[key] = 0.999 * self.second[key] + 0.001 * grad * grad
            first = self.first[key] / (1 - 0.9**self.step)
            second = self.second[key] / (1 - 0.999**self.step)
            if key.startswith("w"):
                params[key] *= 1 - rate * self.decay
            params[key] -= (rate * first / (np.sqrt(second) + 1e-8)).astype(np.float32)


def unfold(x, kernel, stride):
    """[batch, time, channels] -> [batch, steps, kernel * channels]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=1)[:, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 2)).reshape(*windows.shape[:2], -1)


def fold(cols, shape, kernel, stride):
    """The gradient of `unfold`: overlapping windows are added up."""
    batch, steps, _ = cols.shape
    cols = cols.reshape(batch, steps, kernel, shape[2])
    x = np.zeros(shape, np.float32)
    for k in range(kernel):
        x[:, k : k + steps * stride : stride] += cols[:, :, k]
    return x


def softmax(logits):
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def train(net, x, labels, *, epochs, batch, rate, decay, smoothing, augment, rng):
    """x is [rows, time, channels], standardised. The rate falls from `rate` to 0 along half a cosine."""
    classes = net.params["bd"].size
    targets = np.eye(classes, dtype=np.float32)[labels] * (1 - smoothing) + smoothing / classes
    adam, total = Adam(net.params, decay), epochs * (len(x) // batch)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            rows = order[start : start + batch]
            probabilities, state = net.forward(augment(x[rows], rng), True)
            grads = net.backward(probabilities, targets[rows], state)
            adam.update(net.params, grads, rate * 0.5 * (1 + np.cos(np.pi * adam.step / total)))
    return net
