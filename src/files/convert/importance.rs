//! What the errors of a tensor are weighted with, as a file says it: a number for each column, for each column of each expert of a stack, or
//! for each element.

use super::Scales;
use crate::element::Source;
use crate::engine::Importance;
use crate::error::{Error, Result};
use crate::files::checkpoint::Entry;
use crate::files::{rows, shown};
use crate::level::Level;

/// The end of the name under which an importance matrix of llama.cpp has the sums of squares of a tensor's inputs.
const SUMS_OF_SQUARES: &str = ".in_sum2";

/// The weights of one tensor.
pub(super) enum Weights<'a> {
    /// One for each column.
    Columns(&'a Entry, Vec<u8>),
    /// One for each column of each matrix; the rows of a matrix.
    Experts(Vec<f32>, usize),
    /// One for each element.
    Elements(&'a Entry, Vec<u8>),
}

impl Scales {
    /// What the errors of a tensor are weighted with: the tensor of the file, read.
    pub(super) fn weights(&self, tensor: &Entry) -> Result<Option<Weights<'_>>> {
        let Scales::Searched { importance: Some(file), .. } = self else { return Ok(None) };
        let names = [tensor.name.clone(), format!("{}{SUMS_OF_SQUARES}", tensor.name)];
        let Some(entry) = file.entries().iter().find(|entry| names.contains(&entry.name)) else { return Ok(None) };
        let argument = || format!("importance of tensor {}", shown(&tensor.name));
        let Some(dtype) = entry.dtype.float().filter(|_| entry.layout().is_none()) else {
            return Err(Error::dtype(argument(), entry.dtype.name(), "floats"));
        };
        let bytes = file.load(entry)?.into_iter().next().unwrap_or_default();
        let (columns, _) = rows::lengths(&tensor.shape);
        if entry.shape == tensor.shape && entry.shape.len() > 1 {
            let mut floats = vec![0.0; entry.elements() as usize];
            Source::from_bytes(&bytes, dtype, &[floats.len()]).load(Level::current()?, 0, &mut floats);
            // Of a part of it this says nothing.
            if !floats.is_empty() && floats.iter().all(|&weight| weight == 0.0) {
                return Err(Error::value(argument(), "0 everywhere", "leave it out where all elements are as important as each other"));
            }
            return Ok(Some(Weights::Elements(entry, bytes)));
        }
        match tensor.shape[..] {
            [experts, ref matrix @ .., _] if !matrix.is_empty() && entry.elements() == experts as u64 * columns as u64 && experts > 1 => {
                let mut weights = vec![0.0; experts * columns];
                Source::from_bytes(&bytes, dtype, &[weights.len()]).load(Level::current()?, 0, &mut weights);
                // An expert that no input came to counts the same everywhere, as in llama.cpp.
                let unused = |expert: &&mut [f32]| expert.iter().all(|&weight| weight == 0.0);
                weights.chunks_exact_mut(columns).filter(unused).for_each(|expert| expert.fill(1.0));
                Ok(Some(Weights::Experts(weights, matrix.iter().product())))
            }
            _ => Ok(Some(Weights::Columns(entry, bytes))),
        }
    }

    /// The name of what errors are weighted with, if there is a search.
    pub(super) fn named(&self, given: bool) -> Option<&'static str> {
        match self {
            Scales::Nearest => None,
            Scales::Searched { .. } => Some(if given { "importance" } else { "magnitude" }),
        }
    }
}

impl Weights<'_> {
    /// The weights of `count` rows of `columns` from row `first` on; `scratch` holds those that the file does not have as they are.
    pub(super) fn rows<'s>(&'s self, first: usize, count: usize, columns: usize, scratch: &'s mut Vec<f32>) -> Source<'s> {
        match self {
            Weights::Columns(entry, bytes) => {
                let shape = if entry.elements() == columns as u64 { &[columns][..] } else { &entry.shape };
                Source::from_bytes(bytes, entry.dtype.float().expect("it was looked at"), shape)
            }
            Weights::Experts(weights, rows) => {
                scratch.clear();
                for row in first..first + count {
                    scratch.extend_from_slice(&weights[row / rows * columns..][..columns]);
                }
                Source::from_slice(scratch, &[count, columns])
            }
            Weights::Elements(entry, bytes) => {
                let dtype = entry.dtype.float().expect("it was looked at");
                let row = columns * dtype.size();
                Source::from_bytes(&bytes[first * row..][..count * row], dtype, &[count, columns])
            }
        }
    }

    /// These weights, as the engine takes them.
    pub(super) fn importance<'s>(&self, rows: &'s Source<'s>) -> Importance<'s> {
        match self {
            Weights::Columns(..) => Importance::Array(rows),
            Weights::Experts(..) | Weights::Elements(..) => Importance::Rows(rows),
        }
    }
}
