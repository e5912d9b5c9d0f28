// RUN: %cpflex-opt %s --split-input-file --verify-diagnostics

// expected-error@+1 {{an interval of 'i8'; expected i1, i32, i64, ui32 or f32}}
mask.classifier @f(%b: !mask.interval<i8>) -> !mask.interval<i1> {
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{a constant of another kind; expected a number or a bool with its type}}
  %0 = mask.constant "seven"
  mask.yield %0 : i1
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.constant' op of type 'i64' gives 'i1'}}
  %0 = "mask.constant"() {value = 7 : i64} : () -> i1
  mask.yield %0 : i1
}

// -----

mask.classifier @f(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                   %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  %0 = mask.constant 7 : i64
  // expected-error@+1 {{'mask.to_bool' op mixes intervals with single values}}
  %1 = mask.to_bool %0 : i64 -> !mask.interval<i1>
  mask.yield %1 : !mask.interval<i1>
}

// -----

mask.classifier @f(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                   %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  // expected-error@+1 {{'mask.exp' op is not defined for '!mask.interval<i64>'}}
  %0 = mask.exp %q : !mask.interval<i64>
  %1 = mask.to_bool %0 : !mask.interval<i64> -> !mask.interval<i1>
  mask.yield %1 : !mask.interval<i1>
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.param_value' op names @W, which is no mask.param}}
  %0 = mask.param_value @W : i1
  mask.yield %0 : i1
}

// -----

mask.param @W : i64
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.param_value' op has type 'i1'; the param has type 'i64'}}
  %0 = mask.param_value @W : i1
  mask.yield %0 : i1
}

// -----

mask.param @W : i64
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.load' op names @W, which is no mask.capture}}
  %0 = mask.load @W[%q] : (i64) -> i1
  mask.yield %0 : i1
}

// -----

mask.capture @doc : i1 ["B", "KV_LEN"]
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.load' op has 1 indices; 'doc' has 2 dimensions}}
  %0 = mask.load @doc[%q] : (i64) -> i1
  mask.yield %0 : i1
}

// -----

mask.capture @doc : i1 ["KV_LEN"]
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.to_u32 %q : i64 -> ui32
  // expected-error@+1 {{'mask.load' op has an index of type 'ui32'; expected an int}}
  %1 = mask.load @doc[%0] : (ui32) -> i1
  mask.yield %1 : i1
}

// -----

mask.capture @doc : i1 ["KV_LEN"]
mask.classifier @f(%b: !mask.interval<i64>, %h: !mask.interval<i64>, %q: !mask.interval<i64>,
                   %kv: !mask.interval<i64>) -> !mask.interval<i1> {
  %0 = mask.constant 7 : i64
  // expected-error@+1 {{'mask.load' op mixes intervals with single values}}
  %1 = mask.load @doc[%0] : (i64) -> !mask.interval<i1>
  mask.yield %1 : !mask.interval<i1>
}

// -----

mask.capture @doc : i16 ["KV_LEN"]
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.load' op gives 'i1'; an array of 'i16' gives 'i64'}}
  %0 = mask.load @doc[%q] : (i64) -> i1
  mask.yield %0 : i1
}

// -----

mask.capture @table : f32 ["H"] {grad}
mask.score @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  // expected-error@+1 {{'mask.scatter_add' op outside of a mask.score_gradient}}
  mask.scatter_add %s, @table[%h] : f32[i64]
  mask.yield %s : f32
}

// -----

mask.capture @table : f32 ["H"]
mask.score_gradient @f(%g: f32, %s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  // expected-error@+1 {{'mask.scatter_add' op adds to 'table', which is not declared with grad}}
  mask.scatter_add %g, @table[%h] : f32[i64]
  mask.yield %g : f32
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.reduce' op has a body with other arguments than one index of the count's type}}
  %0 = mask.reduce any %q : i64 -> i1 {
  ^bb0(%i: i32):
    %1 = mask.constant true
    mask.yield %1 : i1
  }
  mask.yield %0 : i1
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.reduce' op has a body that does not yield one value of the result's type 'i1'}}
  %0 = mask.reduce any %q : i64 -> i1 {
  ^bb0(%i: i64):
    mask.yield %i : i64
  }
  mask.yield %0 : i1
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  // expected-error@+1 {{'mask.reduce' op combines 'i1' by 'sum'; expected any or all of bools, or sum, min or max of numbers}}
  %0 = mask.reduce sum %q : i64 -> i1 {
  ^bb0(%i: i64):
    %1 = mask.lt %i, %q : i64
    mask.yield %1 : i1
  }
  mask.yield %0 : i1
}

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.to_u32 %q : i64 -> ui32
  // expected-error@+1 {{'mask.reduce' op has a count of type 'ui32'; expected an int}}
  %1 = mask.reduce any %0 : ui32 -> i1 {
  ^bb0(%i: ui32):
    %2 = mask.lt %i, %0 : ui32
    mask.yield %2 : i1
  }
  mask.yield %1 : i1
}

// -----

// expected-error@+1 {{'mask.capture' op has elements of 'i24'; expected i1, i8 to i64, ui8 to ui64, f16, bf16 or f32}}
mask.capture @doc : i24 ["KV_LEN"]

// -----

// expected-error@+1 {{'mask.capture' op has 5 dimensions; expected at most 4}}
mask.capture @doc : i32 ["1", "2", "3", "4", "5"]

// -----

// expected-error@+1 {{'mask.capture' op is declared with grad; expected float elements}}
mask.capture @doc : i32 ["KV_LEN"] {grad}

// -----

// expected-error@+1 {{'mask.capture' op has 'lo' = 1 : i32; expected an i64 for an array of ints}}
mask.capture @doc : i32 ["KV_LEN"] {lo = 1 : i32}

// -----

// expected-error@+1 {{'mask.param' op has type 'i32'; expected i1, i64, ui32 or f32}}
mask.param @W : i32

// -----

// expected-error@+1 {{'mask.param' op has type 'i64' and a default value of type 'f32'}}
mask.param @W : i64 = 1.5 : f32

// -----

// expected-error@+1 {{'mask.predicate' op has type '(i64, i64) -> i1'; expected (i64, i64, i64, i64) -> i1}}
mask.predicate @f(%q: i64, %kv: i64) -> i1 {
  %0 = mask.lt %q, %kv : i64
  mask.yield %0 : i1
}

// -----

// expected-error@+1 {{'mask.score' op has type '(i64, i64, i64, i64) -> f32'; expected (f32, i64, i64, i64, i64) -> f32}}
mask.score @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  %0 = mask.to_float %q : i64 -> f32
  mask.yield %0 : f32
}

// -----

// expected-error@+1 {{'mask.score_gradient' op has type '(f32, i64, i64, i64, i64) -> f32'; expected (f32, f32, i64, i64, i64, i64) -> f32}}
mask.score_gradient @f(%s: f32, %b: i64, %h: i64, %q: i64, %kv: i64) -> f32 {
  mask.yield %s : f32
}

// -----

// expected-error@+1 {{'mask.classifier' op has type '(i64, i64, i64, i64) -> i1'; expected four intervals of i64 to an interval of i1}}
mask.classifier @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.lt %q, %kv : i64
  mask.yield %0 : i1
}

// -----

// expected-error@+1 {{'mask.predicate' op has a body that does not yield one value of type 'i1'}}
mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  mask.yield %q : i64
}

// -----

// expected-error@+1 {{'mask.attention' op names @f, which is no mask.predicate}}
mask.attention @main mask(@f)

// -----

mask.predicate @f(%b: i64, %h: i64, %q: i64, %kv: i64) -> i1 {
  %0 = mask.lt %q, %kv : i64
  mask.yield %0 : i1
}
// expected-error@+1 {{'mask.attention' op names @f, which is no mask.score}}
mask.attention @main score(@f)

// -----

// expected-error@+1 {{'mask.attention' op names @sinks, which is no mask.capture}}
mask.attention @main sink(@sinks)

// -----

mask.capture @sinks : f32 ["H", "2"]
// expected-error@+1 {{'mask.attention' op has the sink 'sinks'; expected a float array of one dimension}}
mask.attention @main sink(@sinks)
