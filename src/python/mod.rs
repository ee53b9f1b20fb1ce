//! The extension module `quantize._core`: a list of names.

mod api;
mod arrays;
mod dlpack;
mod errors;
mod feedback;
mod files;
mod from_parts;
mod interpreter;
mod list;
mod parts;
mod tensor;

/// What the typed package in `python/quantize` stands on. Not for callers: its functions change without notice.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::api::{compare, cpu_features, dequantize, groups, pack, panic_for_tests, part_shapes, quantize, repack, unpack};
    #[pymodule_export]
    use super::dlpack::from_dlpack;
    #[pymodule_export]
    use super::errors::{CorruptFileError, LossyConversionError, QuantizeWarning};
    #[pymodule_export]
    use super::feedback::{Hessian, gptq, output_error};
    #[pymodule_export]
    use super::files::{File, PolicyError, compare_files, convert, name_map, verify_file};
    #[pymodule_export]
    use super::from_parts::from_parts;
    #[pymodule_export]
    use super::list::list_formats;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python gives it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_init]
    fn init(py: pyo3::Python<'_>) -> pyo3::PyResult<()> {
        super::errors::keep_panics_quiet();
        super::interpreter::refuse_a_second(py)
    }
}
