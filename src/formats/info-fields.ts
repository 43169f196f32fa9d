/** The fields of `info` that depend on the format, with the names of `qemu-img info --output=json`. */

/** A field that is undefined is not shown. */
export type InfoValue = string | number | bigint | boolean | readonly InfoValue[] | InfoFields
export interface InfoFields {
  readonly [name: string]: InfoValue | undefined
}

/** Returns `name` relative to the place of `file`: beside it, unless it is absolute or names a protocol. */
export function beside(file: string, name: string): string {
  const isProtocol = /^[^/]*:/.test(name)
  if (isProtocol || name.startsWith('/')) return name
  return file.slice(0, file.lastIndexOf('/') + 1) + name
}

/** Returns the text up to the first NUL, as in C, at most `maxBytes` bytes. */
export function cText(bytes: Buffer, maxBytes: number): string {
  const nul = bytes.indexOf(0)
  return bytes.toString('utf8', 0, Math.min(nul < 0 ? bytes.length : nul, maxBytes))
}
