//! Which operators are looked at.

use wasmer::sys::wasmparser::{
    Operator, VisitOperator, VisitSimdOperator, for_each_visit_operator,
    for_each_visit_simd_operator,
};

/// Takes the operators that something may be added to. All others are only gone past, which takes half
/// the time that it takes to make a value of each.
#[derive(Default)]
pub(super) struct Concerned<'a>(Option<Operator<'a>>);

impl<'a> Concerned<'a> {
    /// The operator that was visited last, if it is one of them.
    pub(super) fn take(&mut self) -> Option<Operator<'a>> {
        self.0.take()
    }
}

/// Of the operators of the first WebAssembly those that are named here, and of each proposal all, unless
/// it is named: what is new is looked at.
macro_rules! look {
    ($seen:expr, mvp Loop $fields:tt) => { look!(@ $seen, Loop $fields) };
    ($seen:expr, mvp Call $fields:tt) => { look!(@ $seen, Call $fields) };
    ($seen:expr, mvp MemoryGrow $fields:tt) => { look!(@ $seen, MemoryGrow $fields) };
    ($seen:expr, mvp MemorySize $fields:tt) => { look!(@ $seen, MemorySize $fields) };
    ($seen:expr, mvp $($other:tt)*) => {};
    ($seen:expr, sign_extension $($other:tt)*) => {};
    ($seen:expr, saturating_float_to_int $($other:tt)*) => {};
    ($seen:expr, simd $($other:tt)*) => {};
    ($seen:expr, $proposal:ident $($operator:tt)*) => { look!(@ $seen, $($operator)*) };
    (@ $seen:expr, $operator:ident $($fields:tt)?) => {
        $seen = Some(Operator::$operator $($fields)?)
    };
}

macro_rules! visits {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $ty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
        $(
            fn $visit(&mut self $($(, $arg: $ty)*)?) {
                look!(self.0, $proposal $op $({ $($arg),* })?);
            }
        )*
    };
}

#[allow(unused_variables, reason = "of operators that are gone past")]
impl<'a> VisitOperator<'a> for Concerned<'a> {
    type Output = ();

    fn simd_visitor(&mut self) -> Option<&mut dyn VisitSimdOperator<'a, Output = ()>> {
        Some(self)
    }

    for_each_visit_operator!(visits);
}

#[allow(unused_variables, reason = "of operators that are gone past")]
impl<'a> VisitSimdOperator<'a> for Concerned<'a> {
    for_each_visit_simd_operator!(visits);
}
