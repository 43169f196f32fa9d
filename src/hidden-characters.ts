/**
 * Characters that a terminal interprets or hides: control and format characters, such as those that change the direction of
 * text, have no width or separate lines. With them one name can look like another one.
 */

/** Variation selectors are left out: emoji use them, and they change only the look of a character. */
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]|(?!\p{VS})\p{DI}/gu
/** The hidden characters that JSON.stringify does not escape. Newlines between values stay. */
const HIDDEN_IN_JSON = /(?![\0-\x1f])(?:[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]|(?!\p{VS})\p{DI})/gu

/** Returns `text` with hidden characters as \xNN, \uNNNN or \u{NNNNN}. */
export const withoutHidden = (text: string): string => text.replace(HIDDEN, shown)

function shown(character: string): string {
  const code = character.codePointAt(0) as number
  const hex = code.toString(16)
  if (code <= 0xff) return `\\x${hex.padStart(2, '0')}`
  return code <= 0xffff ? `\\u${hex.padStart(4, '0')}` : `\\u{${hex}}`
}

/** Returns the same JSON value, with hidden characters in its strings as \uNNNN. */
export const jsonWithoutHidden = (json: string): string =>
  json.replace(HIDDEN_IN_JSON, character =>
    character
      .split('')
      .map(unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join(''),
  )

/** Returns a JSON line of the log as an object whose texts are safe for a terminal. Stacks keep their lines. */
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
