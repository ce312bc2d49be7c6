"""The one way in. A public function declares its arguments; each call is converted and checked
before the function runs, and a refusal names the argument and says what to do:

    @arguments(v=real("d"), radius=real(low=0))
    def project_l2_ball(v, radius): ...

* A real array may come as anything that holds numbers; integers and booleans become floats, half
  precision is computed in float32. All real arrays of a call have one dtype, that of the first with
  a floating dtype; numbers follow it.
* Integers are int32; what does not fit is refused, never cut.
* A letter in a shape is a size: the same one wherever a call, or a record in it, has that letter;
  "budget + 1" counts from the Python integer `budget` of the same call.
* Ranges are looked at where a value is concrete and holds at most `LOOKED_AT` numbers; NaN fails a
  range. Traced values are converted; a traced number out of its range becomes NaN.
* None passes where it is the default.

`declared` gives the declarations back: the documentation's tables and the fault test are made from
them.
"""

from jaxsac._arguments.declaration import arguments, declared, passes_on
from jaxsac._arguments.numbers import integer, real, size, tolerance
from jaxsac._arguments.objects import (
    anything,
    choice,
    design,
    either,
    flag,
    function,
    key,
    parts,
    record,
    variables,
)

__all__ = [
    "anything",
    "arguments",
    "choice",
    "declared",
    "design",
    "either",
    "flag",
    "function",
    "integer",
    "key",
    "parts",
    "passes_on",
    "real",
    "record",
    "size",
    "tolerance",
    "variables",
]
