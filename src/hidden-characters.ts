/**
 * Characters that a terminal obeys or hides instead of showing them: control and format characters, such as
 * those that turn the direction of text, have no width or separate lines. A name with them may look like
 * another one.
 */

/** Variation selectors are left out: emoji have them, and they change a character's look alone. */
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]|(?!\p{VS})\p{DI}/gu
/** Those that JSON.stringify leaves as they are; new lines between its values stay. */
const HIDDEN_IN_JSON = /(?![\0-\x1f])(?:[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]|(?!\p{VS})\p{DI})/gu

/** `text` with hidden characters as \xNN, \uNNNN or \u{NNNNN}. */
export const withoutHidden = (text: string): string => text.replace(HIDDEN, shown)

function shown(character: string): string {
  const code = character.codePointAt(0) as number
  const hex = code.toString(16)
  if (code <= 0xff) return `\\x${hex.padStart(2, '0')}`
  return code <= 0xffff ? `\\u${hex.padStart(4, '0')}` : `\\u{${hex}}`
}

/** The same JSON value, with hidden characters in its strings as \uNNNN. */
export const jsonWithoutHidden = (json: string): string =>
  json.replace(HIDDEN_IN_JSON, character =>
    character
      .split('')
      .map(unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join(''),
  )

/** A line of the log, in JSON, as an object whose texts may go to a terminal; stacks keep their lines. */
export function shownRecord(line: string): Record<string, unknown> {
  return JSON.parse(line, (_key, value: unknown) => {
    if (typeof value !== 'string') return value
    return value
      .split('\n')
      .map(withoutHidden)
      .join(STACK.test(value) ? '\n' : '\\x0a')
  }) as Record<string, unknown>
}

const STACK = /\n {4}at /
