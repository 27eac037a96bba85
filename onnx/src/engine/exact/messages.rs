//! What is read of an ONNX file here: the messages of onnx.proto3, as they lie in its bytes.
//!
//! [`wire`](super::super::wire) has checked them; what is read nowhere is passed over. Of a field that comes twice the last one counts.

use crate::engine::wire::varint;
use crate::{Dimension, ElementType, ValueInfo};

/// Numbers of element types.
pub(super) mod data_type {
    pub const FLOAT: u64 = 1;
    pub const UINT8: u64 = 2;
    pub const INT8: u64 = 3;
    pub const INT32: u64 = 6;
    pub const INT64: u64 = 7;
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        if let Field::Number(number) = self { Some(number) } else { None }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Field::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// One, or several in a row.
    fn add_integers(self, to: &mut Vec<i64>) -> Option<()> {
        match self {
            Field::Number(number) => to.push(number as i64),
            Field::Bytes(mut bytes) => {
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
            Field::Four(bytes) => to.push(f32::from_le_bytes(bytes)),
            Field::Bytes(bytes) => {
                to.extend(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)))
            }
            _ => return None,
        }
        Some(())
    }
}

/// Hands every field of a message, with its number, to `take`.
fn read<'a>(mut bytes: &'a [u8], mut take: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let (tag, after) = varint(bytes)?;
        let (field, after) = match tag & 7 {
            0 => varint(after).map(|(number, after)| (Field::Number(number), after))?,
            1 => (Field::Eight, after.get(8..)?),
            2 => {
                let (length, after) = varint(after)?;
                let (content, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
                (Field::Bytes(content), after)
            }
            5 => after.split_first_chunk().map(|(four, after)| (Field::Four(*four), after))?,
            _ => return None,
        };
        take(tag >> 3, field)?;
        bytes = after;
    }
    Some(())
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
        read(bytes, |number, field| {
            // Others put the parts of one that comes in several together.
            if number == 7 && graph.replace(Self::read(field.bytes()?)?).is_some() {
                return None;
            }
            Some(())
        })?;
        graph
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut graph = Graph::default();
        read(bytes, |number, field| {
            match number {
                1 => graph.nodes.push(Node::read(field.bytes()?)?),
                5 => graph.initializers.push(Tensor::read(field.bytes()?)?),
                11 => graph.inputs.push(value_info(field.bytes()?)?),
                12 => graph.outputs.push(value_info(field.bytes()?)?),
                _ => {}
            }
            Some(())
        })?;
        Some(graph)
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

impl<'a> Node<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut node = Node::default();
        read(bytes, |number, field| {
            match number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                4 => node.operator = field.text()?,
                5 => node.attributes.push(Attribute::read(field.bytes()?)?),
                7 => node.domain = field.text()?,
                _ => {}
            }
            Some(())
        })?;
        Some(node)
    }
}

#[derive(Default)]
pub(super) struct Attribute<'a> {
    pub name: &'a str,
    pub integer: Option<i64>,
    pub text: Option<&'a str>,
    pub integers: Vec<i64>,
}

impl<'a> Attribute<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut attribute = Attribute::default();
        read(bytes, |number, field| {
            match number {
                1 => attribute.name = field.text()?,
                3 => attribute.integer = Some(field.number()? as i64),
                4 => attribute.text = Some(field.text()?),
                8 => field.add_integers(&mut attribute.integers)?,
                _ => {}
            }
            Some(())
        })?;
        Some(attribute)
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

impl<'a> Tensor<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut tensor = Tensor::default();
        read(bytes, |number, field| {
            match number {
                1 => field.add_integers(&mut tensor.shape)?,
                2 => tensor.data_type = field.number()?,
                4 => field.add_floats(&mut tensor.floats)?,
                5 => field.add_integers(&mut tensor.words)?,
                7 => field.add_integers(&mut tensor.sizes)?,
                8 => tensor.name = field.text()?,
                9 => tensor.raw = field.bytes()?,
                13 => tensor.is_external = true,
                _ => {}
            }
            Some(())
        })?;
        Some(tensor)
    }
}

/// An input or output of a graph, which must have a name and be a tensor.
fn value_info(bytes: &[u8]) -> Option<ValueInfo> {
    let (mut name, mut of_tensor) = (None, None);
    read(bytes, |number, field| {
        match number {
            1 => name = Some(field.text()?),
            2 => {
                read(field.bytes()?, |number, field| {
                    if number == 1 {
                        of_tensor = Some(tensor_type(field.bytes()?)?);
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
    read(bytes, |number, field| {
        match number {
            1 => {
                element_type = match field.number()? {
                    data_type::FLOAT => Some(ElementType::F32),
                    data_type::UINT8 => Some(ElementType::U8),
                    _ => None,
                }
            }
            2 => {
                let mut dimensions = Vec::new();
                read(field.bytes()?, |number, field| {
                    if number == 1 {
                        dimensions.push(dimension(field.bytes()?)?);
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
    read(bytes, |number, field| {
        match number {
            1 => size = usize::try_from(field.number()? as i64).ok(),
            2 => name = field.text()?,
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
        assert!(Graph::of_model(&bytes.repeat(2)).is_none());
    }
}
