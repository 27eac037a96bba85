//! What goes into a graph and what comes out, checked before an engine sees it, so that both say the same.

use crate::error::listed;
use crate::{Dimension, ElementType, Error, TensorView, ValueInfo};

/// The inputs and outputs of a loaded graph.
#[derive(Debug)]
pub(crate) struct Signature {
    pub graph: String,
    pub inputs: Vec<ValueInfo>,
    pub outputs: Vec<ValueInfo>,
}

impl Signature {
    /// Fails unless every input is there once, and fits, and every output exists.
    pub fn check(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<(), Error> {
        for (position, (name, view)) in inputs.iter().enumerate() {
            let wrong = |problem: String| Error::Input {
                graph: self.graph.clone(),
                input: (*name).to_owned(),
                problem,
            };
            let Some(info) = self.inputs.iter().find(|info| info.name == *name) else {
                let known = listed(self.inputs.iter().map(|info| &info.name));
                return Err(wrong(format!("the graph has no such input; it has {known}")));
            };
            if inputs[..position].iter().any(|(other, _)| other == name) {
                return Err(wrong("given twice".to_owned()));
            }
            if let Some(wanted) = info.element_type
                && !accepts(wanted, view.element_type())
            {
                return Err(wrong(format!(
                    "the graph wants {wanted}, and {} was given",
                    view.element_type()
                )));
            }
            if let Some(wanted) = &info.shape
                && !fits(wanted, view.shape())
            {
                return Err(wrong(format!(
                    "the graph wants shape {}, and {:?} was given",
                    written(wanted),
                    view.shape()
                )));
            }
        }
        if let Some(missing) =
            self.inputs.iter().find(|info| inputs.iter().all(|(name, _)| *name != info.name))
        {
            return Err(Error::Input {
                graph: self.graph.clone(),
                input: missing.name.clone(),
                problem: "not given".to_owned(),
            });
        }
        for output in outputs {
            if self.outputs.iter().all(|info| info.name != *output) {
                return Err(Error::Output {
                    graph: self.graph.clone(),
                    output: (*output).to_owned(),
                    known: listed(self.outputs.iter().map(|info| &info.name)),
                });
            }
        }
        Ok(())
    }

    /// The element type that input `name` declares, if it declares one.
    pub fn declared(&self, name: &str) -> Option<ElementType> {
        self.inputs.iter().find(|info| info.name == name).and_then(|info| info.element_type)
    }
}

fn accepts(wanted: ElementType, given: ElementType) -> bool {
    use ElementType::{F32, I16, I32, I64};
    wanted == given || matches!((wanted, given), (I32, I64) | (I64, I32) | (F32, I16))
}

fn fits(wanted: &[Dimension], given: &[usize]) -> bool {
    wanted.len() == given.len()
        && wanted.iter().zip(given).all(|(wanted, given)| match wanted {
            Dimension::Fixed(size) => size == given,
            Dimension::Any(_) => true,
        })
}

/// `[1, 3, height, ?]`
pub(crate) fn written(shape: &[Dimension]) -> String {
    let sizes = shape.iter().map(|dimension| match dimension {
        Dimension::Fixed(size) => size.to_string(),
        Dimension::Any(name) if name.is_empty() => "?".to_owned(),
        Dimension::Any(name) => name.clone(),
    });
    format!("[{}]", sizes.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature() -> Signature {
        let shape = vec![
            Dimension::Fixed(1),
            Dimension::Fixed(3),
            Dimension::Any("h".into()),
            Dimension::Any("".into()),
        ];
        Signature {
            graph: "g".to_owned(),
            inputs: vec![ValueInfo {
                name: "x".to_owned(),
                element_type: Some(ElementType::U8),
                shape: Some(shape),
            }],
            outputs: vec![ValueInfo { name: "y".to_owned(), element_type: None, shape: None }],
        }
    }

    #[test]
    fn what_does_not_fit_a_graph_is_named() {
        let good = TensorView::u8(&[1, 3, 1, 2], &[0; 6]).unwrap();
        let message = |inputs: &[(&str, TensorView<'_>)], outputs: &[&str]| {
            signature().check(inputs, outputs).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(message(&[("x", good)], &["y"]), "");
        assert_eq!(message(&[], &["y"]), "graph g, input `x`: not given");
        assert_eq!(message(&[("x", good), ("x", good)], &[]), "graph g, input `x`: given twice");
        assert_eq!(message(&[("z", good)], &[]), "graph g, input `z`: the graph has no such input; it has x");
        assert_eq!(message(&[("x", good)], &["q"]), "graph g has no output `q`; it has y");
        let flat = TensorView::u8(&[6], &[0; 6]).unwrap();
        assert_eq!(
            message(&[("x", flat)], &[]),
            "graph g, input `x`: the graph wants shape [1, 3, h, ?], and [6] was given"
        );
        let wrong = TensorView::f32(&[1, 3, 1, 2], &[0.0; 6]).unwrap();
        assert_eq!(
            message(&[("x", wrong)], &[]),
            "graph g, input `x`: the graph wants u8, and f32 was given"
        );
    }
}
