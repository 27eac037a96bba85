//! Tensors in row-major order, owned or borrowed.

use std::fmt;
use std::ops::Deref;

use crate::Error;

/// The type of the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit floating point.
    F32,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElementType::F32 => "f32",
            ElementType::U8 => "u8",
            ElementType::I8 => "i8",
            ElementType::I16 => "i16",
            ElementType::I32 => "i32",
            ElementType::I64 => "i64",
        })
    }
}

/// A slice that owns its memory: a vector, or what an engine computed, left where the engine put it. Pictures are large, and a
/// copy of one costs as much as the memory that it goes to.
pub struct Elements<T>(Memory<T>);

enum Memory<T> {
    Vector(Vec<T>),
    Engine(Box<dyn AsRef<[T]> + Send + Sync>),
}

impl<T> Elements<T> {
    #[cfg_attr(
        not(any(feature = "onnxruntime", all(feature = "rten", target_arch = "x86_64"))),
        allow(dead_code)
    )]
    pub(crate) fn of_engine(memory: impl AsRef<[T]> + Send + Sync + 'static) -> Self {
        Elements(Memory::Engine(Box::new(memory)))
    }
}

impl<T> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Vector(vector) => vector,
            Memory::Engine(memory) => (**memory).as_ref(),
        }
    }
}

impl<T> From<Vec<T>> for Elements<T> {
    fn from(vector: Vec<T>) -> Self {
        Elements(Memory::Vector(vector))
    }
}

impl<T: Clone> From<Elements<T>> for Vec<T> {
    /// Without a copy where it is a vector.
    fn from(elements: Elements<T>) -> Self {
        match elements.0 {
            Memory::Vector(vector) => vector,
            Memory::Engine(memory) => (*memory).as_ref().to_vec(),
        }
    }
}

impl<T: Clone> Clone for Elements<T> {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl<T: fmt::Debug> fmt::Debug for Elements<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Elements<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// The elements of an owned tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floating point.
    F32(Elements<f32>),
    /// Unsigned 8-bit integers.
    U8(Elements<u8>),
    /// Signed 8-bit integers.
    I8(Elements<i8>),
    /// Signed 32-bit integers.
    I32(Elements<i32>),
    /// Signed 64-bit integers.
    I64(Elements<i64>),
}

/// The elements of a borrowed tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ViewData<'a> {
    /// 32-bit floating point.
    F32(&'a [f32]),
    /// Unsigned 8-bit integers.
    U8(&'a [u8]),
    /// Signed 8-bit integers.
    I8(&'a [i8]),
    /// Signed 16-bit integers, for a graph that wants floating point.
    I16(&'a [i16]),
    /// Signed 32-bit integers.
    I32(&'a [i32]),
    /// Signed 64-bit integers.
    I64(&'a [i64]),
}

/// An owned tensor: a shape, outermost dimension first, and as many elements as that shape has.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

/// A borrowed tensor. Both engines read it where it lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    shape: &'a [usize],
    data: ViewData<'a>,
}

fn check(shape: &[usize], given: usize) -> Result<(), Error> {
    let needed = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if needed == Some(given) {
        return Ok(());
    }
    let needed =
        needed.map_or_else(|| "more elements than can be counted".to_owned(), |n| format!("{n} elements"));
    Err(Error::Shape { shape: shape.to_vec(), needed, given })
}

macro_rules! element {
    ($variant:ident, $type:ty, $make:ident, $get:ident, $into:ident) => {
        impl Tensor {
            #[doc = concat!("A tensor of ", stringify!($type), "; fails unless `data` has as many elements as `shape`.")]
            pub fn $make(shape: impl Into<Vec<usize>>, data: Vec<$type>) -> Result<Self, Error> {
                Self::new(shape, TensorData::$variant(data.into()))
            }

            #[doc = concat!("The elements, if they are ", stringify!($type), ".")]
            pub fn $get(&self) -> Result<&[$type], Error> {
                match &self.data {
                    TensorData::$variant(data) => Ok(data),
                    _ => Err(Error::ElementType { found: self.element_type(), wanted: ElementType::$variant }),
                }
            }

            #[doc = concat!("The elements without a copy, if they are ", stringify!($type), ".")]
            pub fn $into(self) -> Result<Elements<$type>, Error> {
                let found = self.element_type();
                match self.data {
                    TensorData::$variant(data) => Ok(data),
                    _ => Err(Error::ElementType { found, wanted: ElementType::$variant }),
                }
            }
        }

        impl<'a> TensorView<'a> {
            #[doc = concat!("Borrowed ", stringify!($type), "; fails unless `data` has as many elements as `shape`.")]
            pub fn $make(shape: &'a [usize], data: &'a [$type]) -> Result<Self, Error> {
                Self::new(shape, ViewData::$variant(data))
            }
        }
    };
}

element!(F32, f32, f32, as_f32, into_f32);
element!(U8, u8, u8, as_u8, into_u8);
element!(I8, i8, i8, as_i8, into_i8);
element!(I32, i32, i32, as_i32, into_i32);
element!(I64, i64, i64, as_i64, into_i64);

impl Tensor {
    /// A tensor; fails unless `data` has as many elements as `shape`.
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorData) -> Result<Self, Error> {
        let shape = shape.into();
        let tensor = Tensor { shape, data };
        check(&tensor.shape, tensor.view().data.length())?;
        Ok(tensor)
    }

    /// The size of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Shape and elements, without a copy.
    pub fn into_parts(self) -> (Vec<usize>, TensorData) {
        (self.shape, self.data)
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.view().element_type()
    }

    /// The tensor, borrowed.
    pub fn view(&self) -> TensorView<'_> {
        let data = match &self.data {
            TensorData::F32(data) => ViewData::F32(data),
            TensorData::U8(data) => ViewData::U8(data),
            TensorData::I8(data) => ViewData::I8(data),
            TensorData::I32(data) => ViewData::I32(data),
            TensorData::I64(data) => ViewData::I64(data),
        };
        TensorView { shape: &self.shape, data }
    }
}

impl ViewData<'_> {
    fn length(&self) -> usize {
        match self {
            ViewData::F32(data) => data.len(),
            ViewData::U8(data) => data.len(),
            ViewData::I8(data) => data.len(),
            ViewData::I16(data) => data.len(),
            ViewData::I32(data) => data.len(),
            ViewData::I64(data) => data.len(),
        }
    }
}

impl<'a> TensorView<'a> {
    /// Borrowed i16, which graphs take as floating point; fails unless `data` has as many elements as `shape`.
    pub fn i16(shape: &'a [usize], data: &'a [i16]) -> Result<Self, Error> {
        Self::new(shape, ViewData::I16(data))
    }

    /// A view; fails unless `data` has as many elements as `shape`.
    pub fn new(shape: &'a [usize], data: ViewData<'a>) -> Result<Self, Error> {
        check(shape, data.length())?;
        Ok(TensorView { shape, data })
    }

    /// The size of every dimension, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements.
    pub fn data(&self) -> ViewData<'a> {
        self.data
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self.data {
            ViewData::F32(_) => ElementType::F32,
            ViewData::U8(_) => ElementType::U8,
            ViewData::I8(_) => ElementType::I8,
            ViewData::I16(_) => ElementType::I16,
            ViewData::I32(_) => ElementType::I32,
            ViewData::I64(_) => ElementType::I64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_whose_length_does_not_fit_its_shape_is_refused() {
        let error = Tensor::f32([1, 2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a tensor of shape [1, 2, 3] needs 6 elements, but 5 elements were given"
        );
        assert!(TensorView::u8(&[usize::MAX, 2], &[]).is_err());
        assert!(Tensor::u8([0, 7], vec![]).is_ok());
        assert!(Tensor::i64([], vec![3]).is_ok());
    }

    #[test]
    fn memory_of_an_engine_is_read_where_it_lies_and_copied_when_a_vector_is_wanted() {
        let elements = Elements::of_engine([1u8, 2, 3]);
        let at = elements.as_ptr();
        let tensor = Tensor::new([3], TensorData::U8(elements)).unwrap();
        assert_eq!(tensor, Tensor::u8([3], vec![1, 2, 3]).unwrap());
        assert_eq!(tensor.clone(), tensor);
        let elements = tensor.into_u8().unwrap();
        assert_eq!(elements.as_ptr(), at);
        assert_eq!(Vec::from(elements), [1, 2, 3]);
    }

    #[test]
    fn elements_come_out_as_the_type_they_have_or_not_at_all() {
        let tensor = Tensor::u8([2], vec![1, 2]).unwrap();
        assert_eq!(tensor.as_u8().unwrap(), [1, 2]);
        assert_eq!(tensor.as_f32().unwrap_err().to_string(), "the tensor holds u8, and f32 was asked for");
        assert_eq!(Vec::from(tensor.into_u8().unwrap()), [1, 2]);
    }
}
