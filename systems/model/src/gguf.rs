//! Reading GGUF files: metadata with typed access, tensors, and the file's fingerprint.

use crate::ModelError;
use crate::kernel::packed::{Arena, PackedMatrix, Stored};
use crate::kernel::pool::Turn;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use celslm_kv::ModelFingerprint;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// An opened GGUF file: its parsed header, and the reader that tensors come from.
pub struct GgufFile {
    path: PathBuf,
    content: gguf_file::Content,
    reader: BufReader<File>,
}

impl GgufFile {
    /// Opens a file and parses its header.
    ///
    /// # Errors
    /// [`ModelError::Io`] when it cannot be read, [`ModelError::Gguf`] when it is no GGUF file
    /// or is cut short: every declared tensor must lie within the file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let bad = |reason: String| ModelError::Gguf {
            path: path.to_owned(),
            reason,
        };
        // The parser checks its lengths, but divides by a declared alignment of zero: foreign
        // bytes must never take the process down, so a panic in it counts as a bad file.
        let content = catch_unwind(AssertUnwindSafe(|| gguf_file::Content::read(&mut reader)))
            .map_err(|_| bad("the header is inconsistent".to_owned()))?
            .map_err(|error| bad(error.to_string()))?;
        for (name, info) in &content.tensor_infos {
            let elements = info
                .shape
                .dims()
                .iter()
                .try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
            let end = elements
                .map(|n| n / info.ggml_dtype.block_size() as u64)
                .and_then(|blocks| blocks.checked_mul(info.ggml_dtype.type_size() as u64))
                .and_then(|bytes| bytes.checked_add(info.offset))
                .and_then(|end| end.checked_add(content.tensor_data_offset));
            match end {
                Some(end) if end <= file_bytes => {}
                _ => {
                    return Err(bad(format!(
                        "tensor {name} reaches past the end of the file ({file_bytes} bytes): the file is cut short"
                    )));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            content,
            reader,
        })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// BLAKE3 of the whole file. Reads it once, through the page cache.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the file cannot be mapped.
    pub fn fingerprint(&self) -> Result<ModelFingerprint, ModelError> {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_mmap_rayon(&self.path)
            .map_err(|source| ModelError::Io {
                path: self.path.clone(),
                source,
            })?;
        Ok(ModelFingerprint::from_bytes(*hasher.finalize().as_bytes()))
    }

    pub(crate) fn content(&self) -> &gguf_file::Content {
        &self.content
    }

    pub(crate) fn incomplete(&self, reason: String) -> ModelError {
        ModelError::Incomplete {
            path: self.path.clone(),
            reason,
        }
    }

    fn value(&self, key: &str) -> Result<&gguf_file::Value, ModelError> {
        self.content
            .metadata
            .get(key)
            .ok_or_else(|| self.incomplete(format!("the metadata key {key} is missing")))
    }

    /// A string of the metadata.
    pub(crate) fn string(&self, key: &str) -> Result<&str, ModelError> {
        let value = self.value(key)?;
        value
            .to_string()
            .map(String::as_str)
            .map_err(|_| self.incomplete(format!("the metadata key {key} is not a string")))
    }

    /// A count of the metadata, whatever integer type it is written in.
    pub(crate) fn usize(&self, key: &str) -> Result<usize, ModelError> {
        use gguf_file::Value as V;
        let count = match self.value(key)? {
            V::U8(v) => Some(u64::from(*v)),
            V::U16(v) => Some(u64::from(*v)),
            V::U32(v) => Some(u64::from(*v)),
            V::U64(v) => Some(*v),
            V::I32(v) => u64::try_from(*v).ok(),
            V::I64(v) => u64::try_from(*v).ok(),
            _ => None,
        };
        count
            .and_then(|count| usize::try_from(count).ok())
            .ok_or_else(|| self.incomplete(format!("the metadata key {key} is not a count")))
    }

    pub(crate) fn f32(&self, key: &str) -> Result<f32, ModelError> {
        self.value(key)?
            .to_f32()
            .ok()
            .filter(|v| v.is_finite())
            .ok_or_else(|| self.incomplete(format!("the metadata key {key} is not a number")))
    }

    pub(crate) fn optional_usize(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.content.metadata.contains_key(key) {
            true => self.usize(key).map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn optional_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.content.metadata.contains_key(key) {
            true => self.f32(key).map(Some),
            false => Ok(None),
        }
    }

    /// Reads a tensor and checks its shape (`[rows, columns]` for a matrix).
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        match self.content.tensor_infos.get(name) {
            None => return Err(self.incomplete(format!("tensor {name} is missing"))),
            Some(info) if info.shape.dims() != shape => {
                let found = info.shape.dims().to_vec();
                return Err(self.incomplete(format!(
                    "tensor {name} has shape {found:?}, expected {shape:?}"
                )));
            }
            Some(_) => {}
        }
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .map_err(|error| ModelError::Gguf {
                path: self.path.clone(),
                reason: error.to_string(),
            })
    }

    /// A tensor's numbers widened to f32, in row-major order, its shape checked (`[rows, columns]`
    /// for a matrix): for whoever computes with the weights by other means than the decoder's.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`] when it is missing or has another shape, [`ModelError::Gguf`]
    /// when it cannot be read.
    pub fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, shape)?;
        let dense = tensor.dequantize(&Device::Cpu)?;
        Ok(dense.flatten_all()?.to_vec1()?)
    }

    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Format and shape of every matrix of the file.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = (GgmlDType, usize, usize)> {
        self.content
            .tensor_infos
            .values()
            .filter_map(|info| match info.shape.dims() {
                [rows, columns] => Some((info.ggml_dtype, *rows, *columns)),
                _ => None,
            })
    }

    /// Packs a matrix and checks its shape.
    pub(crate) fn pack(
        &mut self,
        name: &str,
        [rows, columns]: [usize; 2],
        arena: &mut Arena,
        turn: &Turn<'_>,
    ) -> Result<PackedMatrix, ModelError> {
        let (dtype, offset) = match self.content.tensor_infos.get(name) {
            Some(info) if info.shape.dims() == [rows, columns] => (info.ggml_dtype, info.offset),
            // Says what is wrong with it.
            _ => {
                self.tensor(name, &[rows, columns])?;
                return Err(self.incomplete(format!("tensor {name} is unusable")));
            }
        };
        let start = self.content.tensor_data_offset + offset;
        let io = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        let stored = Stored {
            dtype,
            rows,
            columns,
            read: &|offset, out| {
                let file = self.reader.get_ref();
                file.read_exact_at(out, start + offset as u64).map_err(io)
            },
            widen: &|| {
                let mut file = self.reader.get_ref();
                let tensor = self.content.tensor(&mut file, name, &Device::Cpu)?;
                let dense = tensor.dequantize(&Device::Cpu)?;
                Ok(dense.flatten_all()?.to_vec1()?)
            },
        };
        PackedMatrix::new(&stored, arena, turn)
    }

    /// Rows of a matrix, from its declared shape: the vocabulary size of an embedding.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`] when there is no such matrix.
    pub fn rows(&self, name: &str) -> Result<usize, ModelError> {
        match self
            .content
            .tensor_infos
            .get(name)
            .map(|info| info.shape.dims())
        {
            Some([rows, _]) => Ok(*rows),
            _ => Err(self.incomplete(format!("tensor {name} is missing or is no matrix"))),
        }
    }
}
