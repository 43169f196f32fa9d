/** Suggests what a user may have meant. */

/** How many letters of a word may differ, for each so many that it has. */
const LETTERS_A_MISTAKE = 3

/** Returns the end of a sentence that suggests the name of `names` that is nearest to `word`; empty if none is near. */
export function nearest(word: string, names: readonly string[]): string {
  const most = Math.max(1, Math.floor(word.length / LETTERS_A_MISTAKE))
  const found = names
    .map(name => ({ name, mistakes: mistakesBetween(word.toLowerCase(), name.toLowerCase()) }))
    .filter(({ mistakes }) => mistakes <= most)
    .sort((a, b) => a.mistakes - b.mistakes)[0]
  return found ? `; did you mean ${found.name}?` : ''
}

/** Returns how many letters have to be added, removed, changed or swapped with the next one (optimal string alignment). */
function mistakesBetween(one: string, other: string): number {
  let beforeLast: number[] = []
  let last = Array.from({ length: other.length + 1 }, (_, index) => index)
  for (let i = 1; i <= one.length; i++) {
    const row = [i]
    for (let j = 1; j <= other.length; j++) {
      const isSame = one[i - 1] === other[j - 1]
      const least = Math.min(
        (last[j] as number) + 1,
        (row[j - 1] as number) + 1,
        (last[j - 1] as number) + Number(!isSame),
      )
      const isSwap = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1]
      row.push(isSwap ? Math.min(least, (beforeLast[j - 2] as number) + 1) : least)
    }
    beforeLast = last
    last = row
  }
  return last[other.length] as number
}
