// All of this library at once: torch's headers, which each part needs, take most of the time that it takes to compile.
#include "attention.h"
#include "between.h"
#include "linear.h"
#include "rows.h"
