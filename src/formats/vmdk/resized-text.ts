/** Changes the sizes in a descriptor; the rest of its text stays as it is, byte by byte. */

/** Sizes in sectors. */
interface Sizes {
  readonly extent: number
  readonly disk: number
}

const EXTENT_SIZE = /^([ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+)([0-9]+)(?=[ \t])/gim

/** Returns the text with the sizes of its last extent and of the disk's geometry; undefined if it has no extent line. */
export function resizedText(bytes: Buffer, sizes: Sizes): Buffer | undefined {
  const text = bytes.toString('latin1')
  const line = [...text.matchAll(EXTENT_SIZE)].at(-1)
  if (!line) return undefined
  const [, before = '', digits = ''] = line
  const at = line.index + before.length
  const changed = `${text.slice(0, at)}${sizes.extent}${text.slice(at + digits.length)}`
  return Buffer.from(withGeometry(changed, sizes.disk), 'latin1')
}

function withGeometry(text: string, sectors: number): string {
  const valueOf = (name: string) =>
    Number(
      new RegExp(`^[ \\t]*ddb\\.geometry\\.${name}[ \\t]*=[ \\t]*"?([0-9]+)`, 'im').exec(text)?.[1],
    )
  const cylinders = Math.floor(sectors / (valueOf('heads') * valueOf('sectors')))
  if (!Number.isFinite(cylinders)) return text
  const cylindersOf = /^([ \t]*ddb\.geometry\.cylinders[ \t]*=[ \t]*"?)[0-9]+/im
  return text.replace(cylindersOf, (_, before: string) => `${before}${cylinders}`)
}
