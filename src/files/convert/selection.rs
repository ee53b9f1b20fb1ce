//! Which tensors are selected, by their names.

use super::Fallback;
use crate::error::{Error, Result};
use crate::files::checkpoint::Checkpoint;
use crate::files::gguf::image::Image;
use crate::files::{glob, shown};
use crate::layout::Options;
use crate::spec::Spec;

/// Which tensors are selected, by their names, and what becomes of those that their format does not take. With nothing given: all,
/// and such a one refuses the job.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Patterns: if there are any, only tensors that match one.
    pub include: Vec<String>,
    /// Patterns: no tensor that matches one.
    pub exclude: Vec<String>,
    /// Names that are not selected; each must be there.
    pub keep: Vec<String>,
    /// What selected tensors become, in place of what is wanted of all: the first that matches decides.
    pub rules: Vec<Rule>,
    /// What a matrix becomes that its format does not take.
    pub fallback: Option<Fallback>,
    /// Whether a quantized tensor whose values the format cannot hold goes through floats; else it refuses the job.
    pub requantize: bool,
    /// The GGUF file that another file becomes.
    pub image: Option<Image>,
}

/// What tensors of some names become.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The pattern of the names.
    pub pattern: String,
    /// The format; `None`: they are kept as they are.
    pub format: Option<(&'static Spec, Options)>,
}

impl Selection {
    /// Every pattern and name must mean something: one that fits no tensor is most likely misspelt.
    pub(super) fn check(&self, file: &Checkpoint) -> Result<()> {
        let names = || file.entries().iter().map(|entry| entry.name.as_str());
        let rules: Vec<String> = self.rules.iter().map(|rule| rule.pattern.clone()).collect();
        for (argument, patterns) in [("include", &self.include), ("exclude", &self.exclude), ("a rule", &rules)] {
            if let Some(pattern) = patterns.iter().find(|pattern| !names().any(|name| glob::matches(pattern, name))) {
                return Err(Error::value(argument, shown(pattern), "no tensor of the file matches it"));
            }
        }
        match self.keep.iter().find(|kept| !names().any(|name| name == *kept)) {
            Some(kept) => Err(Error::value("keep", shown(kept), "no tensor of the file has that name")),
            None => Ok(()),
        }
    }

    /// The reason why a tensor is not selected.
    pub(super) fn leaves_out(&self, name: &str) -> Option<String> {
        let matching = |patterns: &'_ [String]| patterns.iter().find(|pattern| glob::matches(pattern, name)).cloned();
        if self.keep.iter().any(|kept| kept == name) {
            Some("kept by name".into())
        } else if let Some(pattern) = matching(&self.exclude) {
            Some(format!("excluded by {}", shown(&pattern)))
        } else if !self.include.is_empty() && matching(&self.include).is_none() {
            Some("not included".into())
        } else {
            None
        }
    }

    /// The rule that decides about a tensor, if it is selected.
    pub(super) fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| glob::matches(&rule.pattern, name))
    }
}
