/** Tables of text. */

/**
 * Returns `rows` in columns that are as wide as their widest cell.
 * @param numbers the columns that are aligned on the right
 */
export function textTable(
  rows: readonly (readonly string[])[],
  numbers: readonly number[] = [],
): string {
  const widths = (rows[0] ?? []).map((_, at) => Math.max(...rows.map(row => row[at]?.length ?? 0)))
  const aligned = (cell: string, at: number) =>
    numbers.includes(at) ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0)
  return rows.map(row => `${row.map(aligned).join('  ').trimEnd()}\n`).join('')
}
