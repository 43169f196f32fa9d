/** Formats numbers for people. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']

/** Returns a size with three digits, in a unit that leaves less than 1000 before the point: 1073741824 → "1 GiB". */
export function humanSize(bytes: number): string {
  let power = 0
  while (bytes / 1024 ** power >= 1000 && power < UNITS.length - 1) power++
  const value = bytes / 1024 ** power
  const scale = value >= 100 ? 1 : value >= 10 ? 10 : value >= 1 ? 100 : 1000
  return `${roundToEven(value * scale) / scale} ${UNITS[power]}`
}

/** Rounds a half to the even neighbour, as C's printf and so QEMU does. */
function roundToEven(value: number): number {
  const rounded = Math.round(value)
  return rounded - value === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded
}
