//! ONNX files made by hand: models that answer the watch's windows, each with something wrong.
//!
//! Input `window` `f32[batch, 6, 128]`, output `probabilities` `f32[batch, 7]`, as `models/watch-small.toml` has it. Field numbers are
//! those of onnx.proto of ONNX 1.17. Standardised zeros, which a model is tried with when it is loaded, are harmless to all that
//! fail later: what goes wrong grows with the size of the windows.

/// A graph under construction.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<u8>,
    initializers: Vec<u8>,
}

/// Classes of the watch.
const LABELS: i64 = 7;
/// Of TensorProto.DataType.
const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// Always the first class, at once.
pub fn constant() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.begin();
    graph.end("nothing")
}

/// NaN for each window that is not of zeros.
pub fn not_a_number() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.begin();
    graph.node("Neg", &["size"], &["minus"], &[]);
    graph.node("Sqrt", &["minus"], &["root"], &[]);
    graph.end("root")
}

/// One output too few.
pub fn wrong_shape() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.begin();
    graph.floats("six", &[1, 6], &[0.5; 6]);
    graph.node("Mul", &["nothing", "six"], &["probabilities"], &[]);
    graph.file(6)
}

/// The first class, after `rounds` products of matrices of 512 by 512, about a hundredth of a second each.
pub fn slow(rounds: i64) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.floats("rounds", &[], &[rounds as f32]);
    looping(graph, "rounds")
}

/// Goes on for years once it is given a window that is not of zeros.
pub fn endless() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.floats("rounds", &[], &[1e12]);
    looping(graph, "rounds")
}

/// The first class, until it is given windows whose mean square, standardised, is above `size`: then it goes on for years. It passes
/// every trial with windows that are not.
pub fn trap(size: f32) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.begin();
    graph.floats("bearable", &[], &[size]);
    graph.node("Sub", &["all", "bearable"], &["beyond"], &[]);
    graph.node("Relu", &["beyond"], &["over"], &[]);
    graph.node("Tanh", &["over"], &["sprung"], &[]);
    graph.floats("rounds", &[], &[1e12]);
    graph.turns("sprung", "rounds")
}

/// As many values as would fill a thousand boxes, for a window that is not of zeros.
pub fn exploding() -> Vec<u8> {
    let mut graph = Graph::default();
    graph.begin();
    graph.floats("much", &[], &[3e10]);
    graph.node("Mul", &["some", "much"], &["many"], &[]);
    graph.node("Cast", &["many"], &["count"], &[int("to", INT64)]);
    graph.ints("one", &[1], &[1]);
    graph.node("Reshape", &["count", "one"], &["shape"], &[]);
    graph.node("ConstantOfShape", &["shape"], &["values"], &[]);
    graph.ints("axes0", &[1], &[0]);
    graph.node("ReduceSum", &["values", "axes0"], &["sum"], &[int("keepdims", 1)]);
    graph.node("Mul", &["nothing", "sum"], &["spoiled"], &[]);
    graph.end("spoiled")
}

/// Branches within branches, deeper than an engine's stack: it dies while it reads them.
pub fn bottomless() -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..DEPTH {
        let mut branch = string(1, "then_branch");
        bytes(6, &inner, &mut branch);
        number(20, 5, &mut branch);
        let mut node = string(4, "If");
        bytes(5, &branch, &mut node);
        let mut graph = Vec::new();
        bytes(1, &node, &mut graph);
        inner = graph;
    }
    let mut graph = Graph::default();
    graph.begin();
    graph.nodes.extend_from_slice(&inner);
    graph.end("nothing")
}

/// How deep [`bottomless`] is.
const DEPTH: usize = 20_000;

/// A loop whose rounds grow with the window, up to the named number.
fn looping(mut graph: Graph, rounds: &str) -> Vec<u8> {
    graph.begin();
    graph.turns("some", rounds)
}

impl Graph {
    /// The first class, after a loop of this part of the named number of rounds.
    fn turns(mut self, part: &str, rounds: &str) -> Vec<u8> {
        let graph = &mut self;
        graph.node("Mul", &[part, rounds], &["turns"], &[]);
        graph.node("Ceil", &["turns"], &["whole"], &[]);
        graph.node("Cast", &["whole"], &["count"], &[int("to", INT64)]);
        graph.ints("square", &[2], &[512, 512]);
        graph.node("ConstantOfShape", &["square"], &["zeros"], &[]);
        graph.node("Add", &["zeros", "some"], &["matrix"], &[]);
        let mut body = Graph::default();
        body.node("MatMul", &["held", "held"], &["product"], &[]);
        body.node("Tanh", &["product"], &["next"], &[]);
        body.node("Identity", &["go"], &["on"], &[]);
        let mut inner = body.nodes;
        inner.extend(string(2, "body"));
        for (field, name, kind) in
            [(11, "round", INT64), (11, "go", 9), (11, "held", FLOAT), (12, "on", 9), (12, "next", FLOAT)]
        {
            let dims: &[&str] = if kind == FLOAT { &["512", "512"] } else { &[] };
            bytes(field, &value(name, kind, dims), &mut inner);
        }
        let mut attribute = string(1, "body");
        bytes(6, &inner, &mut attribute);
        number(20, 5, &mut attribute);
        graph.node("Loop", &["count", "", "matrix"], &["last"], &[attribute]);
        graph.node("ReduceMean", &["last"], &["mean"], &[int("keepdims", 0)]);
        graph.floats("zero", &[], &[0.0]);
        graph.node("Mul", &["mean", "zero"], &["gone"], &[]);
        graph.node("Add", &["nothing", "gone"], &["slowly"], &[]);
        self.end("slowly")
    }
}

impl Graph {
    /// `nothing` `[batch, 1]` of zeros, `size` `[batch, 1]` of mean squares, and `some`, 0 for zeros and up to 1.
    fn begin(&mut self) {
        self.node("Mul", &["window", "window"], &["squares"], &[]);
        self.node("ReduceMean", &["squares"], &["sizes"], &[ints("axes", &[1, 2]), int("keepdims", 0)]);
        self.ints("column", &[2], &[-1, 1]);
        self.node("Reshape", &["sizes", "column"], &["size"], &[]);
        self.floats("none", &[], &[0.0]);
        self.node("Mul", &["size", "none"], &["nothing"], &[]);
        self.node("ReduceMean", &["size"], &["all"], &[int("keepdims", 0)]);
        self.node("Tanh", &["all"], &["some"], &[]);
    }

    /// The first class, and `added` `[batch, 1]`, which should be nothing.
    fn end(mut self, added: &str) -> Vec<u8> {
        self.floats("classes", &[1, LABELS], &[0.7, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]);
        self.node("Add", &["classes", added], &["probabilities"], &[]);
        self.file(LABELS)
    }

    fn node(&mut self, kind: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| node.extend(string(1, name)));
        outputs.iter().for_each(|name| node.extend(string(2, name)));
        node.extend(string(4, kind));
        attributes.iter().for_each(|attribute| bytes(5, attribute, &mut node));
        bytes(1, &node, &mut self.nodes);
    }

    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dims, FLOAT, &raw);
    }

    fn ints(&mut self, name: &str, dims: &[i64], values: &[i64]) {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dims, INT64, &raw);
    }

    fn tensor(&mut self, name: &str, dims: &[i64], kind: u64, raw: &[u8]) {
        let mut tensor = Vec::new();
        dims.iter().for_each(|dim| number(1, *dim as u64, &mut tensor));
        number(2, kind, &mut tensor);
        tensor.extend(string(8, name));
        bytes(9, raw, &mut tensor);
        bytes(5, &tensor, &mut self.initializers);
    }

    /// The file, with so many outputs.
    fn file(self, outputs: i64) -> Vec<u8> {
        let mut graph = self.nodes;
        graph.extend(string(2, "graph"));
        graph.extend(self.initializers);
        bytes(11, &value("window", FLOAT, &["batch", "6", "128"]), &mut graph);
        bytes(12, &value("probabilities", FLOAT, &["batch", &outputs.to_string()]), &mut graph);
        let mut opset = string(1, "");
        number(2, 13, &mut opset);
        let mut model = Vec::new();
        number(1, 8, &mut model);
        bytes(7, &graph, &mut model);
        bytes(8, &opset, &mut model);
        model
    }
}

/// A ValueInfoProto; a dimension is a number or a name.
fn value(name: &str, kind: u64, dims: &[&str]) -> Vec<u8> {
    let mut shape = Vec::new();
    for dim in dims {
        let mut encoded = Vec::new();
        match dim.parse() {
            Ok(length) => number(1, length, &mut encoded),
            Err(_) => encoded = string(2, dim),
        }
        bytes(1, &encoded, &mut shape);
    }
    let (mut tensor, mut of, mut value) = (Vec::new(), Vec::new(), string(1, name));
    number(1, kind, &mut tensor);
    bytes(2, &shape, &mut tensor);
    bytes(1, &tensor, &mut of);
    bytes(2, &of, &mut value);
    value
}

/// An AttributeProto.
fn int(name: &str, value: u64) -> Vec<u8> {
    let mut attribute = string(1, name);
    number(3, value, &mut attribute);
    number(20, 2, &mut attribute);
    attribute
}

fn ints(name: &str, values: &[u64]) -> Vec<u8> {
    let mut attribute = string(1, name);
    values.iter().for_each(|value| number(8, *value, &mut attribute));
    number(20, 7, &mut attribute);
    attribute
}

fn string(field: u64, text: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    bytes(field, text.as_bytes(), &mut encoded);
    encoded
}

fn bytes(field: u64, value: &[u8], to: &mut Vec<u8>) {
    varint(field << 3 | 2, to);
    varint(value.len() as u64, to);
    to.extend_from_slice(value);
}

fn number(field: u64, value: u64, to: &mut Vec<u8>) {
    varint(field << 3, to);
    varint(value, to);
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
