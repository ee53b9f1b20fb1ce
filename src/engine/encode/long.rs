//! Groups that are longer than a core's own cache holds: the ranges of all of them, then their codes span by span.

use super::super::cut::{self, PartsMut, Task};
use super::super::groups::pack_long_scales;
use super::{Job, NonFinite, Scratch, clean, join, largest_finite, survey};
use crate::engine::search::Search;
use crate::error::Result;
use crate::formats::{Context, Faults, Groups, Range};
use crate::kernels::encode::Input;
use crate::kernels::stream::Fence;
use crate::pool::{self, Watch};
use std::sync::atomic::Ordering;

impl Job<'_> {
    pub(super) fn encode_long(&mut self, mut parts: PartsMut<'_>) -> Result<(Faults, bool)> {
        if self.policy == Some(NonFinite::Clip) {
            self.bounds = self.fold(0.0, largest_finite, f32::max)?;
        }
        if let Some(search) = self.search {
            return self.encode_searched(search, parts);
        }
        let need = self.format.need();
        let surveyed = self.fold((None, false), |x| survey(self.run.level, need, x), |earlier, later| join(need, earlier, later))?;
        let mut faults = Faults { element: surveyed.iter().any(|&(_, fault)| fault), scale: false };
        if faults.element {
            return Ok((faults, false));
        }
        let ranges: Vec<Range> = surveyed.into_iter().filter_map(|(range, _)| range).collect();
        faults |= self.write_scales(&ranges, &mut parts)?;
        let tasks =
            self.grid.tasks().map(|(start, len)| Task { start, len, parts: cut::split_mut(&mut parts, self.grid.bytes(self.rows, len)) });
        let large = self.is_streamed();
        let span = if self.format.streams(self.grid.group) { self.read_span() } else { self.span };
        let pool_failed = pool::for_each(tasks, self.run.threads, self.run.interrupted, |mut task| {
            let Scratch { mut x, mut groups } = Scratch::default();
            for (start, len) in self.spans_of(&task, span) {
                let mut parts = cut::split_mut(&mut task.parts, self.grid.bytes(self.rows, len));
                let parts = &mut parts[..self.rows.spec.parts.len()];
                let context = Context { stream: large && len >= cut::STREAMED_SPAN, ..self.context() };
                let group = self.grid.group_of(start);
                self.format.encode_part(context, self.long_span(start, len, group, &mut x), ranges[group], &mut groups, parts);
            }
            if large {
                self.run.level.run(Fence);
            }
        })?;
        // The first pass saw the replaced elements too.
        if self.policy.is_some() {
            let passes = 2;
            *self.replaced.get_mut() /= passes;
        }
        Ok((faults, pool_failed))
    }

    /// The one group of all rows, where it was searched for: none that is longer than a tile is.
    fn encode_searched(&self, search: &Search<'_>, mut parts: PartsMut<'_>) -> Result<(Faults, bool)> {
        let len = self.grid.elements();
        let (mut x, mut all, mut piece) = (Vec::new(), Groups::default(), Groups::default());
        let context = Context { group: len, ..self.context() };
        all.resize(self.rows.spec, context, len);
        let faults = search.quantize(self.format, context, &self.run, 0, self.long_span(0, len, 0, &mut x), &mut all);
        pack_long_scales(self.rows, &self.grid, self.format, self.run.level, &all, &mut parts);
        for (start, len) in self.grid.tasks() {
            let mut parts = cut::split_mut(&mut parts, self.grid.bytes(self.rows, len));
            for (start, len) in self.spans_of(&Task { start, len, parts: () }, self.span) {
                let mut parts = cut::split_mut(&mut parts, self.grid.bytes(self.rows, len));
                let context = Context { group: len, ..context };
                piece.resize(self.rows.spec, context, len);
                piece.codes.copy_from_slice(&all.codes[start..start + len]);
                self.format.pack(context, &piece, &mut parts[..self.rows.spec.parts.len()]);
            }
        }
        Ok((faults, false))
    }

    /// One value for every long group, from those of its spans in order.
    pub(super) fn fold<T: Copy + Send>(&self, empty: T, of: impl Fn(&[f32]) -> T + Sync, then: impl Fn(T, T) -> T) -> Result<Vec<T>> {
        let span = self.read_span();
        let spans: usize = self.grid.tasks().map(|(start, len)| self.spans_of(&Task { start, len, parts: () }, span).count()).sum();
        let mut values = vec![(0, empty); spans];
        let mut rest = &mut values[..];
        let tasks = self.grid.tasks().map(|(start, len)| {
            let task = Task { start, len, parts: () };
            let (first, others) = std::mem::take(&mut rest).split_at_mut(self.spans_of(&task, span).count());
            rest = others;
            (task, first)
        });
        pool::for_each(tasks, self.run.threads, self.run.interrupted, |(task, values)| {
            let mut scratch = Vec::new();
            for ((start, len), value) in self.spans_of(&task, span).zip(values) {
                let group = self.grid.group_of(start);
                *value = (group, of(self.long_span(start, len, group, &mut scratch)));
            }
        })?;
        let groups = self.grid.rows_of_groups() * self.grid.groups_of_a_row();
        let mut folded = vec![empty; groups];
        for (group, value) in values {
            folded[group] = then(folded[group], value);
        }
        Ok(folded)
    }

    /// A span of a long group, cleaned where a policy says so and the bounds are known.
    fn long_span<'t>(&'t self, start: usize, len: usize, group: usize, scratch: &'t mut Vec<f32>) -> &'t [f32] {
        match (self.input, self.policy) {
            (Some(Input::F32(x)), None) => &x[start..start + len],
            (_, policy) => {
                scratch.resize(len, 0.0);
                self.load(start, scratch);
                let bound = self.bounds.get(group).copied();
                if let Some(policy) = policy
                    && (policy == NonFinite::Zero || bound.is_some())
                {
                    self.replaced.fetch_add(clean(scratch, policy, bound.unwrap_or(0.0)), Ordering::Relaxed);
                }
                scratch
            }
        }
    }

    /// The parts that hold one element a group; what is left of `parts` is the codes.
    fn write_scales(&self, ranges: &[Range], parts: &mut PartsMut<'_>) -> Result<Faults> {
        let mut watch = Watch::new(self.run.interrupted);
        let mut faults = Faults::default();
        let context = Context { group: 1, ..self.context() };
        let (mut all, mut one) = (Groups::default(), Groups::default());
        one.resize(self.rows.spec, context, 1);
        for &range in ranges {
            watch.check()?;
            faults |= self.format.quantize(context, &[0.0], Some(range), &mut one);
            all.scales.push(one.scales[0]);
            all.offsets.extend(&one.offsets);
        }
        pack_long_scales(self.rows, &self.grid, self.format, self.run.level, &all, parts);
        Ok(faults)
    }
}
