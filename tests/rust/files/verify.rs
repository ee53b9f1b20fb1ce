//! A file against the one that it was made of.

use std::fs;
use std::path::Path;

use super::{checkpoint, convert, float_tensor, target, write_file};
use quantize::engine::Run;
use quantize::files::StoredDtype;
use quantize::files::verify::{self, Verdict};
use quantize::level::Level;

#[test]
fn what_was_made_is_reproduced_and_what_was_changed_is_at_fault() {
    let folder = tempfile::tempdir().unwrap();
    let [source, made] = ["source", "made"].map(|name| folder.path().join(name));
    write_file(&source, &[float_tensor("w", StoredDtype::F32, &[4, 64])], &[]);
    let run = Run::serial(Level::current().unwrap());
    let verdict = |file: &Path, against: Option<&Path>| {
        let against = against.map(checkpoint);
        verify::verify(&checkpoint(file), against.as_ref(), &run, &mut |_, _| Ok(())).unwrap().remove(0).verdict
    };
    convert(&source, &made, target("int4", None));
    assert_eq!(verdict(&made, None), Verdict::Sound);
    assert_eq!(verdict(&made, Some(&source)), Verdict::Reproduced);
    assert_eq!(verdict(&made, Some(&made)), Verdict::Same);

    // The codes of the last two elements come last.
    let mut bytes = fs::read(&made).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(&made, bytes).unwrap();
    let Verdict::Faulty(reason) = verdict(&made, Some(&source)) else { panic!("a code was changed") };
    assert_eq!(reason, "elements are not stored as the nearest value, the first at (3, 63)");
    assert_eq!(verdict(&made, None), Verdict::Sound);
}
