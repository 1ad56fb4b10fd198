//! What is in an ONNX file, read without an engine: its operators, and whether it is an export that runs badly.
//!
//! Only the few fields that are needed are read; weights are skipped. An operator is its name and domain: the empty domain
//! is ONNX's own, `ai.onnx.ml` holds trees and what else comes from classical machine learning.

use std::collections::BTreeMap;
use std::fmt;

use prost::Message as _;

mod proto;

use proto::{GraphProto, ModelProto, ValueInfoProto};
#[cfg(feature = "rten")]
use proto::{NodeProto, OperatorSetIdProto};

/// An operator that a graph uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Operator {
    /// `ai.onnx.ml`, for example; empty for ONNX's own.
    pub domain: String,
    /// Its name.
    pub name: String,
}

/// What a graph is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    /// How often each operator is used, in subgraphs too.
    pub operators: BTreeMap<Operator, usize>,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// What it takes in, without its weights.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
}

/// An input or an output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type and shape as declared, such as `f32[batch, 6, 128]`; `?` for what is not said.
    pub shape: String,
}

/// A way in which an export is bad, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// One tree operator for each tree: how skl2onnx writes an isolation forest. Loading one of 100 trees took 1 to 6 s
    /// and a row 875 us; as one operator 8 to 37 ms and 3.8 us.
    TreePerOperator {
        /// Tree operators.
        trees: usize,
        /// Operators in all.
        nodes: usize,
    },
    /// Thousands of small operators, each of which costs a microsecond or so a run.
    ManyNodes {
        /// Operators.
        nodes: usize,
    },
    /// Scores come as a list of maps, which is slow, and which Weir does not read.
    ZipMap,
}

impl Graph {
    /// Reads an ONNX file; `None` if it is none.
    pub fn read(onnx: &[u8]) -> Option<Graph> {
        let model = ModelProto::decode(onnx).ok()?;
        let own = model.opset_import.iter().find(|opset| is_own(&opset.domain));
        let mut graph = Graph { opset: own.map_or(0, |opset| opset.version), ..Graph::default() };
        let main = model.graph?;
        graph.add(&main, 0);
        // Old files list weights as inputs too.
        let is_weight = |value: &&ValueInfoProto| main.initializer.iter().any(|weight| weight.name == value.name);
        graph.inputs = main.input.iter().filter(|value| !is_weight(value)).map(Port::of).collect();
        graph.outputs = main.output.iter().map(Port::of).collect();
        Some(graph)
    }

    /// Operators in all.
    pub fn nodes(&self) -> usize {
        self.operators.values().sum()
    }

    /// What is to be said of the export, worst first; empty for a good one.
    pub fn advice(&self) -> Vec<Advice> {
        let nodes = self.nodes();
        let of = |name: &str| {
            let found = self.operators.iter().filter(|(operator, _)| operator.domain == ML && operator.name.starts_with(name));
            found.map(|(_, count)| count).sum::<usize>()
        };
        let trees = of("TreeEnsemble");
        let mut advice = Vec::new();
        if trees >= TREE_OPERATORS_MAX {
            advice.push(Advice::TreePerOperator { trees, nodes });
        } else if nodes > NODES_MAX {
            advice.push(Advice::ManyNodes { nodes });
        }
        if of("ZipMap") > 0 {
            advice.push(Advice::ZipMap);
        }
        advice
    }

    fn add(&mut self, graph: &GraphProto, depth: usize) {
        for node in &graph.node {
            let domain = if is_own(&node.domain) { String::new() } else { node.domain.clone() };
            *self.operators.entry(Operator { domain, name: node.op_type.clone() }).or_default() += 1;
            if depth < DEPTH_MAX {
                node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()).for_each(|graph| self.add(graph, depth + 1));
            }
        }
    }
}

impl Port {
    fn of(value: &ValueInfoProto) -> Port {
        let tensor = value.r#type.as_ref().and_then(|declared| declared.tensor_type.as_ref());
        let shape = match tensor {
            Some(tensor) => {
                let dims = tensor.shape.iter().flat_map(|shape| &shape.dim).map(|dim| match (dim.dim_value, &*dim.dim_param) {
                    (0, "") => "?".to_owned(),
                    (0, name) => name.to_owned(),
                    (size, _) => size.to_string(),
                });
                format!("{}[{}]", element(tensor.elem_type), dims.collect::<Vec<_>>().join(", "))
            }
            None => "not a tensor".to_owned(),
        };
        Port { name: value.name.clone(), shape }
    }
}

/// An element type of onnx.proto.
fn element(kind: i32) -> &'static str {
    match kind {
        1 => "f32",
        2 => "u8",
        3 => "i8",
        6 => "i32",
        7 => "i64",
        8 => "text",
        9 => "bool",
        10 => "f16",
        11 => "f64",
        _ => "?",
    }
}

impl Operator {
    /// Whether it is one of classical machine learning, which only ONNX Runtime has.
    pub fn is_ml(&self) -> bool {
        self.domain == ML
    }

    /// A file with this operator and nothing else, to ask an engine whether it knows it.
    #[cfg(feature = "rten")]
    pub(crate) fn alone(&self) -> Vec<u8> {
        let node = NodeProto { op_type: self.name.clone(), domain: self.domain.clone(), attribute: Vec::new() };
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        let own = opset("", 17);
        let opset_import = if self.domain.is_empty() { vec![own] } else { vec![own, opset(&self.domain, 1)] };
        ModelProto { ir_version: 8, opset_import, graph: Some(GraphProto { node: vec![node], ..GraphProto::default() }) }
            .encode_to_vec()
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.domain.as_str() {
            "" => f.write_str(&self.name),
            domain => write!(f, "{} ({domain})", self.name),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TreePerOperator { trees, nodes } => write!(
                f,
                "{trees} tree operators among {nodes}, as skl2onnx writes an isolation forest: it loads and runs up to 200 times \
                 slower than it could; write all trees as one TreeEnsembleRegressor, as models/export.py does"
            ),
            Self::ManyNodes { nodes } => write!(
                f,
                "{nodes} operators, each of which costs about a microsecond a run: simplify the graph (onnxsim), or export \
                 its layers whole"
            ),
            Self::ZipMap => write!(
                f,
                "its scores are a list of maps: export it with options={{\"zipmap\": False}}, or convert it with \
                 models/trees_to_tensors.py"
            ),
        }
    }
}

/// Both names of ONNX's own domain.
fn is_own(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

const ML: &str = "ai.onnx.ml";
/// A pipeline has one or two; stacked ensembles a few.
const TREE_OPERATORS_MAX: usize = 8;
/// Real exports of what fits a box have tens to hundreds.
const NODES_MAX: usize = 2_000;
/// Bodies of loops and branches within one another.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::proto::{AttributeProto, NodeProto, OperatorSetIdProto};
    use super::*;

    fn node(domain: &str, name: &str) -> NodeProto {
        NodeProto { op_type: name.to_owned(), domain: domain.to_owned(), attribute: Vec::new() }
    }

    fn file(node: Vec<NodeProto>) -> Vec<u8> {
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        ModelProto { ir_version: 8, opset_import, graph: Some(GraphProto { node, ..GraphProto::default() }) }.encode_to_vec()
    }

    #[test]
    fn operators_are_counted_in_branches_too_and_both_names_of_the_own_domain_are_one() {
        let branch =
            AttributeProto { g: Some(GraphProto { node: vec![node("", "Add"), node(ML, "Scaler")], ..GraphProto::default() }) };
        let of_branch = NodeProto { attribute: vec![branch], ..node("", "If") };
        let graph = Graph::read(&file(vec![node("ai.onnx", "Add"), of_branch])).unwrap();
        let found: Vec<String> = graph.operators.iter().map(|(operator, count)| format!("{operator} {count}")).collect();
        assert_eq!((found, graph.opset), (vec!["Add 2".into(), "If 1".into(), "Scaler (ai.onnx.ml) 1".into()], 17));
    }

    #[test]
    fn an_operator_for_each_tree_thousands_of_operators_and_lists_of_maps_are_recognised() {
        let advice = |nodes| Graph::read(&file(nodes)).unwrap().advice();
        assert_eq!(advice(vec![node(ML, "TreeEnsembleRegressor"); 2]), []);
        let trees = advice(vec![node(ML, "TreeEnsembleRegressor"); 12]);
        assert_eq!(trees, [Advice::TreePerOperator { trees: 12, nodes: 12 }]);
        assert!(trees[0].to_string().contains("one TreeEnsembleRegressor"));
        assert_eq!(advice(vec![node("", "Add"); 2_001]), [Advice::ManyNodes { nodes: 2_001 }]);
        assert_eq!(advice(vec![node(ML, "ZipMap")]), [Advice::ZipMap]);
    }

    #[test]
    fn what_is_no_model_is_none() {
        for bytes in [b"<html>404</html>".as_slice(), b"", &[0xff; 40]] {
            assert_eq!(Graph::read(bytes), None);
        }
    }
}
