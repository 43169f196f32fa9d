/** Breaks texts into lines. */

/** Returns a text whose line breaks do not count in one line. */
export const unfolded = (text: string): string => text.replace(/\s*\n\s*/g, ' ')

/** Breaks a text at spaces. A longer word stays whole. */
export function wrapped(text: string, width: number): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const last = lines.at(-1)
    if (last !== undefined && last.length + 1 + word.length <= width) {
      lines[lines.length - 1] = `${last} ${word}`
    } else lines.push(word)
  }
  return lines
}
