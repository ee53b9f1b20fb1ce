//! Two files, tensor by tensor.

use std::collections::BTreeMap;

use super::{checkpoint, convert, float_tensor, load, target, tensor, weights, write_file};
use quantize::engine;
use quantize::engine::Run;
use quantize::files::StoredDtype;
use quantize::files::compare::{self, Verdict};
use quantize::level::Level;
use quantize::tensor::Quantized;

#[test]
fn two_files_are_compared_tensor_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let matrix = float_tensor("matrix", StoredDtype::F32, &[2, 64]);
    let ids = (tensor("ids", StoredDtype::I64, &[2]), vec![1; 16]);
    let byte = |name: &str, value| (tensor(name, StoredDtype::U8, &[1]), vec![value]);
    let float = |name: &str, shape: &[usize]| float_tensor(name, StoredDtype::F32, shape);
    write_file(&first, &[matrix.clone(), ids.clone(), byte("other", 1), float("shape", &[4]), byte("dtype", 1), float("a", &[])], &[]);
    let small = folder.path().join("small");
    convert(&first, &small, target("int4", None));
    let parts: Vec<_> = load(&checkpoint(&small), "matrix");
    let scheme = checkpoint(&small).container().metadata()["quantize"].clone();
    write_file(
        &second,
        &[
            (tensor("matrix.packed", StoredDtype::U8, &[2, 32]), parts[0].clone()),
            (tensor("matrix.scales", StoredDtype::F16, &[2, 2]), parts[1].clone()),
            ids,
            byte("other", 2),
            float("shape", &[2, 2]),
            float("dtype", &[1]),
            float("b", &[]),
        ],
        &[("quantize", &scheme)],
    );

    let run = Run::serial(Level::current().unwrap());
    let compared = compare::compare(&checkpoint(&first), &checkpoint(&second), &run, &mut |_, _| Ok(())).unwrap();
    let mut verdicts = BTreeMap::new();
    for row in compared {
        let text = match row.verdict {
            None => "missing".into(),
            Some(Verdict::Measured(sums)) => {
                let x = weights(128);
                let quantized = Quantized {
                    layout: checkpoint(&small).entries().iter().find_map(|e| e.layout()).unwrap().clone(),
                    parts: parts.clone(),
                };
                let error: f64 = engine::dequantize_owned(&quantized).unwrap().iter().zip(&x).map(|(y, x)| f64::from(y - x).powi(2)).sum();
                assert!((sums.error_squares / error - 1.0).abs() < 1e-6 && error > 0.0, "{} {error}", sums.error_squares);
                format!("{} {}", row.reference.unwrap().kind, row.other.unwrap().kind)
            }
            Some(verdict) => format!("{verdict:?}"),
        };
        verdicts.insert(row.name, text);
    }
    let expected = [
        ("matrix", "float32 int4"),
        ("ids", "SameBytes(true)"),
        ("other", "SameBytes(false)"),
        ("shape", "Shapes"),
        ("dtype", "Dtypes"),
        ("a", "missing"),
        ("b", "missing"),
    ];
    assert_eq!(verdicts, expected.map(|(name, text)| (name.to_string(), text.to_string())).into());
}
