//! Encoding with the scales of the smallest error in place of those of the format's own rule.

use super::Run;
use super::importance::{Importance, Weights};
use crate::element::Source;
use crate::error::{Error, Result};
use crate::formats::{Context, FORMATS, Faults, Format, Groups, Rows, variants};
use crate::kernels::sums::ErrorsOf;
use crate::layout::Layout;
use crate::search::{Elements, LARGEST_GROUP, Nested, Problem, Task};
use crate::simd::LANES;
use crate::spec::{GroupSize, Spec};
use std::sync::Arc;

/// How scales are chosen.
#[derive(Clone, Copy, Debug, Default)]
pub enum Method<'a> {
    /// By the rule of the format's home project.
    #[default]
    Nearest,
    /// Those of the smallest error, weighted so; see [`crate::search`].
    Optimal(Importance<'a>),
    /// Those whose error is larger than the smallest one by no more than such a part of itself, from 1e-6 to 1, where the search is
    /// not exact.
    Within(Importance<'a>, f32),
    /// Those of the smallest error among the scales that leave no element further beyond the codes than such a part of the largest
    /// magnitude of its group, from 0 to 1.
    Clipped(Importance<'a>, f32),
    /// Those that a quick search finds; it proves nothing.
    Fast(Importance<'a>),
}

/// The largest magnitude of a group from which on every scale that matters is a normal number of f32.
const LEAST: f32 = 16.0 * f32::MIN_POSITIVE;

/// The search for the groups of one array.
pub(crate) struct Search<'a> {
    problem: Problem,
    weights: Weights<'a>,
    /// Length of the group axis.
    columns: usize,
    /// The scales that there are, where they are quantized in turn.
    nested: Option<Arc<Nested>>,
}

impl<'a> Search<'a> {
    /// The search that a method asks for, if any.
    pub(crate) fn new(method: Method<'a>, source: &Source<'_>, layout: &Layout, run: &Run<'_>) -> Result<Option<Search<'a>>> {
        let (importance, name, find): (_, _, Find) = match method {
            Method::Nearest => return Ok(None),
            Method::Optimal(importance) | Method::Within(importance, _) | Method::Clipped(importance, _) => {
                (importance, "optimal", Problem::of)
            }
            Method::Fast(importance) => (importance, "fast", fast),
        };
        let Some(mut problem) = find(layout.spec) else {
            return Err(Error::Method { method: name, format: layout.spec.name.into(), formats: names(find) });
        };
        if let Method::Clipped(_, limit) = method {
            if !(0.0..=1.0).contains(&limit) {
                return Err(Error::value("clip_limit", limit.to_string(), "expected a number from 0 to 1, such as 0.05"));
            }
            problem = problem.clipping(limit).ok_or_else(|| {
                let others = names(clipping).join(", ");
                Error::value("clip_limit", "given", format!("{} is not searched with one; formats that are: {others}", layout.spec.name))
            })?;
        }
        if let Method::Within(_, tolerance) = method {
            if !TOLERANCES.contains(&tolerance) {
                return Err(Error::value("tolerance", tolerance.to_string(), "expected a number from 0.000001 to 1, such as 0.01"));
            }
            problem = problem.within(tolerance);
        }
        let elements =
            if layout.group_size == GroupSize::Tensor { layout.elements() } else { layout.group_elements().min(layout.columns()) };
        if elements > LARGEST_GROUP {
            let found = format!("{}, groups of {elements} elements", layout.group_size);
            return Err(Error::value("group_size", found, format!("method=\"{name}\" takes groups of up to {LARGEST_GROUP}")));
        }
        let columns = source.shape().last().copied().unwrap_or(1);
        Ok(Some(Search { problem, weights: Weights::new(importance, source, run)?, columns, nested: None }))
    }

    /// The same among these scales.
    pub(super) fn among(self, nested: Nested) -> Search<'a> {
        Search { nested: Some(Arc::new(nested)), ..self }
    }

    /// The groups of the elements `x`, which begin at `start`. `groups` has room for them.
    pub(crate) fn quantize(
        &self,
        format: &dyn Rows,
        context: Context,
        run: &Run<'_>,
        start: usize,
        x: &[f32],
        groups: &mut Groups,
    ) -> Faults {
        let mut scratch = Vec::new();
        let weights = self.weights.of(start, x, self.columns, run, &mut scratch);
        // One pair a block; a format that shares nothing has no blocks.
        let mut units = vec![[0.0; 2]; if groups.headers.is_empty() { 0 } else { x.len() / format.spec().block(context.group) }];
        let faults = self.problem.solve(Task {
            level: context.level,
            x: Elements::Rows(x),
            weights,
            group: context.group,
            dtype: context.scale_dtype,
            global: context.global,
            codes: &mut groups.codes,
            scales: &mut groups.scales,
            offsets: &mut groups.offsets,
            units: &mut units,
            nested: self.nested.as_ref().map(|nested| (Arc::clone(nested), start / context.group)),
        });
        format.write_headers(&units, groups);
        if self.problem.is_rounded_afterwards() {
            keep_the_better(format, context, x, weights, groups);
        }
        let least = least(context);
        let mut one = Groups::default();
        for (group, elements) in x.chunks(context.group).enumerate() {
            // A block of several groups is not coded group by group; its scales of 0 are those of zeros.
            if elements.iter().any(|x| x.abs() >= least) || format.spec().block(context.group) != context.group {
                continue;
            }
            let at = group * context.group..group * context.group + elements.len();
            let context = Context { group: at.len(), ..context };
            one.resize(format.spec(), context, at.len());
            format.quantize(context, elements, None, &mut one);
            groups.codes[at].copy_from_slice(&one.codes);
            groups.scales[group] = one.scales[0];
            if let Some(offset) = groups.offsets.get_mut(group) {
                *offset = one.offsets[0];
            }
        }
        faults
    }

    /// Scales and offsets alone, those of [`Search::quantize`], of sixteen groups side by side whose columns have the weights of the
    /// columns of the array; `None` where that needs their codes.
    pub(crate) fn choose(&self, context: Context, columns: &[[f32; LANES]], scales: &mut [f32], offsets: &mut [f32]) -> Option<Faults> {
        let Weights::Columns(weights) = &self.weights else { return None };
        let is_searched = |lane: usize| columns.iter().any(|column| column[lane].abs() >= least(context));
        if self.problem.is_rounded_afterwards() || !(0..LANES).all(is_searched) {
            return None;
        }
        Some(self.problem.solve(Task {
            level: context.level,
            x: Elements::Columns(columns),
            weights: Some(weights),
            group: context.group,
            dtype: context.scale_dtype,
            global: context.global,
            codes: &mut [],
            scales,
            offsets,
            units: &mut [],
            nested: None,
        }))
    }

    /// The error of what [`Search::quantize`] finds, weighted.
    pub(super) fn error(&self, format: &dyn Rows, context: Context, run: &Run<'_>, start: usize, x: &[f32], groups: &mut Groups) -> f64 {
        self.quantize(format, context, run, start, x, groups);
        let mut scratch = Vec::new();
        let weights = self.weights.of(start, x, self.columns, run, &mut scratch);
        errors(format, context, x, weights, groups, x.len())[0]
    }
}

/// The largest magnitude of a group from which on it is searched: every format has its own way to store a group of zeros, and scales
/// below the normal numbers.
fn least(context: Context) -> f32 {
    if context.scale_dtype.size() > 1 { LEAST } else { f32::from_bits(1) }
}

/// The format's own groups where their error is smaller; blocks of groups that share a scale are kept whole.
fn keep_the_better(format: &dyn Rows, context: Context, x: &[f32], weights: Option<&[f32]>, groups: &mut Groups) {
    let mut own = Groups::default();
    own.resize(format.spec(), context, x.len());
    format.quantize(context, x, None, &mut own);
    let size = if groups.headers.is_empty() { context.group } else { format.spec().block(context.group) };
    let errors = |groups: &Groups| errors(format, context, x, weights, groups, size);
    let (found, own_errors) = (errors(groups), errors(&own));
    let (of_block, header) = (size / context.group, format.spec().header_bytes(size));
    for block in (0..found.len()).filter(|&block| own_errors[block] < found[block]) {
        let elements = block * size..x.len().min((block + 1) * size);
        let lines = block * of_block..(block + 1) * of_block;
        let bytes = block * header..(block + 1) * header;
        groups.codes[elements.clone()].copy_from_slice(&own.codes[elements]);
        groups.scales[lines.clone()].copy_from_slice(&own.scales[lines.clone()]);
        if !own.offsets.is_empty() {
            groups.offsets[lines.clone()].copy_from_slice(&own.offsets[lines]);
        }
        groups.headers[bytes.clone()].copy_from_slice(&own.headers[bytes]);
    }
}

/// The error of every `size` elements.
fn errors(format: &dyn Rows, context: Context, x: &[f32], weights: Option<&[f32]>, groups: &Groups, size: usize) -> Vec<f64> {
    let mut decoded = vec![0.0; x.len()];
    format.dequantize(context, groups, &mut decoded);
    let mut errors = vec![0.0; x.len().div_ceil(size)];
    context.level.run(ErrorsOf { x, y: &decoded, weights, size, errors: &mut errors });
    errors
}

/// What a method searches in a format.
type Find = fn(&Spec) -> Option<Problem>;

/// Below these rounding errors would decide.
const TOLERANCES: std::ops::RangeInclusive<f32> = 1e-6..=1.0;

/// The quick search of a format; `None` where it has none.
fn fast(spec: &Spec) -> Option<Problem> {
    Problem::of(spec).and_then(Problem::fast)
}

/// The search of a format that can have a clip limit; `None` where it has none.
fn clipping(spec: &Spec) -> Option<Problem> {
    Problem::of(spec).and_then(|problem| problem.clipping(0.0))
}

/// The formats that have a search, with the option where it is one variant of two that has it.
fn names(find: Find) -> Vec<String> {
    let name = |spec: &'static Spec| {
        let all_have = variants(spec).all(|variant| find(variant.spec()).is_some());
        match spec.choice.filter(|_| !all_have).and_then(|choice| choice.is_on().map(|on| (choice.option(), on))) {
            Some((option, on)) => format!("{} ({option}={})", spec.name, if on { "True" } else { "False" }),
            None => spec.name.into(),
        }
    };
    let mut names: Vec<String> = FORMATS.iter().map(|format| Format::spec(*format)).filter(|spec| find(spec).is_some()).map(name).collect();
    names.dedup();
    names
}
