//! A quantized tensor that owns its parts. Never computes: [`crate::engine`] does.

use crate::error::{Error, Result};
use crate::layout::Layout;

/// A layout and the bytes of its parts, in the order of the spec.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// The format, settled for this tensor.
    pub layout: Layout,
    /// Little-endian bytes of each part, as many as the layout says.
    pub parts: Vec<Vec<u8>>,
}

impl Quantized {
    /// Parts of zeros, to be written.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] names the part that could not be had.
    pub fn zeroed(layout: Layout) -> Result<Quantized> {
        let part = |index: usize| {
            let bytes = layout.part_bytes(index);
            let mut part = Vec::new();
            let what = || format!("'{}'", layout.spec.parts[index].name);
            part.try_reserve_exact(bytes).map_err(|_| Error::Memory { what: what(), bytes: bytes as u64 })?;
            part.resize(bytes, 0);
            Ok(part)
        };
        let parts = (0..layout.spec.parts.len()).map(part).collect::<Result<_>>()?;
        Ok(Quantized { layout, parts })
    }

    /// The parts, borrowed.
    pub fn views(&self) -> Vec<&[u8]> {
        self.parts.iter().map(Vec::as_slice).collect()
    }
}
