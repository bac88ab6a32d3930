# Turns lines of "round, figure, value, unit" (tabs between) into a table: for each figure the median
# over the rounds, the least and the greatest, in the order in which the figures came.
#
# Variables: rounds, and ratios, "label|figure|figure" with semicolons between. A ratio is taken round
# by round, so that a slow spell of the machine meets both of its figures.

BEGIN { FS = "\t" }

function sort_values(count,   i, j, value) {
  for (i = 2; i <= count; i++) {
    value = sorted[i]
    for (j = i - 1; j >= 1 && sorted[j] > value; j--) sorted[j + 1] = sorted[j]
    sorted[j + 1] = value
  }
}

function row(name, count, unit,   middle) {
  sort_values(count)
  middle = (sorted[int((count + 1) / 2)] + sorted[int((count + 2) / 2)]) / 2
  printf "%-46s %12.3f %12.3f %12.3f  %s\n", name, middle, sorted[1], sorted[count], unit
}

{
  if (!($2 in seen)) {
    seen[$2] = 1
    names[++named] = $2
    units[$2] = $4
  }
  values[$1, $2] = $3
}

END {
  printf "%-46s %12s %12s %12s\n", "figure", "median", "least", "greatest"
  for (n = 1; n <= named; n++) {
    count = 0
    for (round = 1; round <= rounds; round++)
      if ((round, names[n]) in values) sorted[++count] = values[round, names[n]]
    row(names[n], count, units[names[n]])
  }
  wanted = split(ratios, ratio, ";")
  for (n = 1; n <= wanted; n++) {
    split(ratio[n], part, "|")
    count = 0
    for (round = 1; round <= rounds; round++)
      if ((round, part[2]) in values && (round, part[3]) in values && values[round, part[3]] > 0)
        sorted[++count] = values[round, part[2]] / values[round, part[3]]
    if (count > 0) row(part[1], count, "x")
  }
}
