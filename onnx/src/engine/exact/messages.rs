//! What is read of an ONNX file here: the messages of onnx.proto3, as they lie in its bytes.
//!
//! [`wire`](super::super::wire) has checked them, and that there is one graph; what is read nowhere is passed over. Of a field that comes
//! twice the last one counts.

use crate::engine::wire::{Content, first_field, varint};
use crate::{Dimension, ElementType, ValueInfo};

/// Numbers of element types.
pub(super) mod data_type {
    pub const FLOAT: u64 = 1;
    pub const UINT8: u64 = 2;
    pub const INT8: u64 = 3;
    pub const INT32: u64 = 6;
    pub const INT64: u64 = 7;
}

/// Hands the number of every field of a message, and what it holds, to `take`.
fn fields<'a>(mut bytes: &'a [u8], mut take: impl FnMut(u32, Content<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let (number, content, rest) = first_field(bytes).ok()?;
        take(number, content)?;
        bytes = rest;
    }
    Some(())
}

impl<'a> Content<'a> {
    fn number(self) -> Option<u64> {
        if let Content::Number(number) = self { Some(number) } else { None }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Content::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// One, or several in a row.
    fn add_integers(self, to: &mut Vec<i64>) -> Option<()> {
        match self {
            Content::Number(number) => to.push(number as i64),
            Content::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let (number, rest) = varint(bytes)?;
                    to.push(number as i64);
                    bytes = rest;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn add_floats(self, to: &mut Vec<f32>) -> Option<()> {
        match self {
            Content::Four(bytes) => to.push(f32::from_le_bytes(bytes)),
            Content::Bytes(bytes) => {
                to.extend(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)))
            }
            _ => return None,
        }
        Some(())
    }

    fn message<M: Message<'a>>(self) -> Option<M> {
        M::read(self.bytes()?)
    }
}

/// A message whose fields are kept.
trait Message<'a>: Default {
    fn take(&mut self, number: u32, content: Content<'a>) -> Option<()>;

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut message = Self::default();
        fields(bytes, |number, content| message.take(number, content))?;
        Some(message)
    }
}

#[derive(Default)]
pub(super) struct Graph<'a> {
    pub nodes: Vec<Node<'a>>,
    pub initializers: Vec<Tensor<'a>>,
    pub inputs: Vec<ValueInfo>,
    pub outputs: Vec<ValueInfo>,
}

impl<'a> Graph<'a> {
    /// The graph of a model.
    pub fn of_model(bytes: &'a [u8]) -> Option<Self> {
        let mut graph = None;
        fields(bytes, |number, content| {
            if number == 7 {
                graph = Some(content.message()?);
            }
            Some(())
        })?;
        graph
    }
}

impl<'a> Message<'a> for Graph<'a> {
    fn take(&mut self, number: u32, content: Content<'a>) -> Option<()> {
        match number {
            1 => self.nodes.push(content.message()?),
            5 => self.initializers.push(content.message()?),
            11 => self.inputs.push(value_info(content.bytes()?)?),
            12 => self.outputs.push(value_info(content.bytes()?)?),
            _ => {}
        }
        Some(())
    }
}

#[derive(Default)]
pub(super) struct Node<'a> {
    pub inputs: Vec<&'a str>,
    pub outputs: Vec<&'a str>,
    pub operator: &'a str,
    pub attributes: Vec<Attribute<'a>>,
    /// Whose operators these are; the standard's have none.
    pub domain: &'a str,
}

impl<'a> Message<'a> for Node<'a> {
    fn take(&mut self, number: u32, content: Content<'a>) -> Option<()> {
        match number {
            1 => self.inputs.push(content.text()?),
            2 => self.outputs.push(content.text()?),
            4 => self.operator = content.text()?,
            5 => self.attributes.push(content.message()?),
            7 => self.domain = content.text()?,
            _ => {}
        }
        Some(())
    }
}

#[derive(Default)]
pub(super) struct Attribute<'a> {
    pub name: &'a str,
    pub integer: Option<i64>,
    pub text: Option<&'a str>,
    pub integers: Vec<i64>,
}

impl<'a> Message<'a> for Attribute<'a> {
    fn take(&mut self, number: u32, content: Content<'a>) -> Option<()> {
        match number {
            1 => self.name = content.text()?,
            3 => self.integer = Some(content.number()? as i64),
            4 => self.text = Some(content.text()?),
            8 => content.add_integers(&mut self.integers)?,
            _ => {}
        }
        Some(())
    }
}

#[derive(Default)]
pub(super) struct Tensor<'a> {
    pub name: &'a str,
    pub shape: Vec<i64>,
    pub data_type: u64,
    /// Little-endian elements. Where there are none, they are in one of the fields for a type.
    pub raw: &'a [u8],
    pub floats: Vec<f32>,
    pub words: Vec<i64>,
    pub sizes: Vec<i64>,
    /// Whether they are in a file.
    pub is_external: bool,
}

impl<'a> Message<'a> for Tensor<'a> {
    fn take(&mut self, number: u32, content: Content<'a>) -> Option<()> {
        match number {
            1 => content.add_integers(&mut self.shape)?,
            2 => self.data_type = content.number()?,
            4 => content.add_floats(&mut self.floats)?,
            5 => content.add_integers(&mut self.words)?,
            7 => content.add_integers(&mut self.sizes)?,
            8 => self.name = content.text()?,
            9 => self.raw = content.bytes()?,
            13 => self.is_external = true,
            _ => {}
        }
        Some(())
    }
}

/// An input or output of a graph, which must have a name and be a tensor.
fn value_info(bytes: &[u8]) -> Option<ValueInfo> {
    let (mut name, mut of_tensor) = (None, None);
    fields(bytes, |number, content| {
        match number {
            1 => name = Some(content.text()?),
            2 => {
                fields(content.bytes()?, |number, content| {
                    if number == 1 {
                        of_tensor = Some(tensor_type(content.bytes()?)?);
                    }
                    Some(())
                })?;
            }
            _ => {}
        }
        Some(())
    })?;
    let (element_type, shape) = of_tensor?;
    Some(ValueInfo { name: name?.to_owned(), element_type, shape })
}

fn tensor_type(bytes: &[u8]) -> Option<(Option<ElementType>, Option<Vec<Dimension>>)> {
    let (mut element_type, mut shape) = (None, None);
    fields(bytes, |number, content| {
        match number {
            1 => {
                element_type = match content.number()? {
                    data_type::FLOAT => Some(ElementType::F32),
                    data_type::UINT8 => Some(ElementType::U8),
                    _ => None,
                }
            }
            2 => {
                let mut dimensions = Vec::new();
                fields(content.bytes()?, |number, content| {
                    if number == 1 {
                        dimensions.push(dimension(content.bytes()?)?);
                    }
                    Some(())
                })?;
                shape = Some(dimensions);
            }
            _ => {}
        }
        Some(())
    })?;
    Some((element_type, shape))
}

fn dimension(bytes: &[u8]) -> Option<Dimension> {
    let (mut size, mut name) = (None, "");
    fields(bytes, |number, content| {
        match number {
            1 => size = usize::try_from(content.number()? as i64).ok(),
            2 => name = content.text()?,
            _ => {}
        }
        Some(())
    })?;
    Some(size.map_or_else(|| Dimension::Any(name.to_owned()), Dimension::Fixed))
}

#[cfg(test)]
mod tests {
    use rten_onnx::onnx::{DataType, GraphProto, ModelProto, TensorProto};

    use super::*;
    use crate::GraphSource;
    use crate::engine::wire;

    #[test]
    fn integers_and_floats_come_one_by_one_or_in_a_row() {
        // Field 7 twice by itself and once with two in it, field 4 the same way.
        let mut bytes = vec![7 << 3, 1, 7 << 3, 0x80, 1, 7 << 3 | 2, 3, 3, 0x80, 2];
        let [a, b] = [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()];
        bytes.extend([&[4 << 3 | 5][..], &a, &[4 << 3 | 2, 8], &b, &a].concat());
        let tensor = Tensor::read(&bytes).unwrap();
        assert_eq!(tensor.sizes, [1, 128, 3, 256]);
        assert_eq!(tensor.floats, [1.5, -2.0, 1.5]);
        assert!((1..bytes.len()).all(|cut| Tensor::read(&bytes[..cut]).is_none_or(|cut| cut.sizes != [0])));
    }

    #[test]
    fn a_tensor_is_what_was_written() {
        let written = TensorProto {
            name: Some("w".to_owned()),
            dims: vec![2, 3],
            data_type: Some(DataType::INT8),
            raw_data: Some(vec![1, 2, 3, 4, 5, 255].into()),
            ..Default::default()
        };
        let graph = GraphProto { initializer: vec![written], ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.write_buf().unwrap();
        let graph = Graph::of_model(&bytes).unwrap();
        let [tensor] = &graph.initializers[..] else { panic!("one") };
        assert_eq!((tensor.name, &tensor.shape[..]), ("w", &[2, 3][..]));
        assert_eq!((tensor.data_type, tensor.raw), (data_type::INT8, &[1, 2, 3, 4, 5, 255][..]));
        assert!(Graph::of_model(&bytes[..bytes.len() - 1]).is_none());
        // Others put two graphs together.
        assert!(wire::check(&bytes.repeat(2), &GraphSource::bytes("w", Vec::new())).is_err());
    }
}
