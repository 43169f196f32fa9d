/**
 * Reads text as VMware writes it: descriptors, .vmsd and .vmx files.
 *
 * It has lines of `key = "value"`, the dictionary of VMware's tools (open-vm-tools, lib/dict/dictll.c). The bytes are cut into
 * lines, and each line is decoded separately. In VMware's encodings, line ends, `=`, `#` and `"` never occur within a
 * character of several bytes, but `\` and `|` do.
 *
 * Every function takes linear time, whatever the text is.
 */
import { TextDecoder } from 'node:util'

const BOM = Buffer.from([0xef, 0xbb, 0xbf])

export interface Text {
  /** The encoding's name in the file. */
  readonly encoding: string | undefined
  /** The lines, without blanks around them, without empty ones and comments. */
  readonly lines: readonly string[]
  /** Decodes bytes of the file. */
  readonly decode: Decode
}

type Decode = (bytes: Buffer) => string

/** Returns `bytes` without a byte order mark, up to the first NUL. */
export function textBytes(bytes: Buffer): Buffer {
  const start = bytes.subarray(0, BOM.length).equals(BOM) ? BOM.length : 0
  const nul = bytes.indexOf(0, start)
  return bytes.subarray(start, nul < 0 ? bytes.length : nul)
}

/**
 * The most bytes that QEMU leaves after a descriptor's NUL. It writes a new CID with as few digits as possible, and leaves the
 * last bytes of the longer, old text (block/vmdk.c, vmdk_write_cid): fewer than the shortest meaningful line.
 */
const RESIDUE_BYTES = 7
/** Such bytes are text, without `=`. */
const RESIDUE = /^[\0\n\r\t -<>-~]*$/

/** Reports whether `bytes`, which begin with the NUL after a text, mean nothing. */
export function isPadding(bytes: Buffer): boolean {
  const end = 1 + RESIDUE_BYTES
  return RESIDUE.test(bytes.toString('latin1', 0, end)) && bytes.subarray(end).every(b => b === 0)
}

/** Returns the lines of `bytes`, decoded with the encoding that the key `encodingKey` names. */
export function readText(bytes: Buffer, encodingKey: string): Text {
  const raw = lines(bytes)
  const encodingLine = raw.find(line => keyValue(line)?.key.toLowerCase() === encodingKey)
  const encoding = encodingLine === undefined ? undefined : keyValue(encodingLine)?.value
  const decode = decoderOf(encoding)
  const text = (line: string) =>
    /[\x80-\xff]/.test(line) ? decode(Buffer.from(line, 'latin1')) : line
  return { encoding, lines: raw.map(text), decode }
}

/** Turns each byte into the character with the same number, so that cutting loses nothing, and splits into lines. */
function lines(bytes: Buffer): string[] {
  return bytes
    .toString('latin1')
    .split(/\r\n|\n|\r/)
    .map(trimBlanks)
    .filter(line => line !== '' && !line.startsWith('#'))
}

/**
 * Returns a line's key, as written, and its value, without quotes and comment. A value that begins with a quote ends at the
 * last quote of the line, unless it is clear otherwise: programs do not escape quotes in paths.
 */
export function keyValue(line: string): { key: string; value: string } | undefined {
  const match = /^([^ \t="#]+)[ \t]*=/.exec(line)
  if (!match) return undefined
  const rest = trimBlanks(line.slice(match[0].length))
  return { key: match[1] as string, value: unquoted(rest) }
}

function unquoted(rest: string): string {
  if (rest.startsWith('"')) {
    const plain = /^"([^"]*)"[ \t]*(?:#|$)/.exec(rest)
    if (plain) return plain[1] as string
    const last = rest.lastIndexOf('"')
    return last > 0 ? rest.slice(1, last) : rest.slice(1)
  }
  if (rest.startsWith('#')) return ''
  const comment = rest.search(/[ \t]#/)
  return comment < 0 ? rest : trimBlanks(rest.slice(0, comment))
}

/** Decodes `|22` and the like, the dictionary's form of quotes, pipes and control characters. */
export function unescaped(value: string, decode: Decode): string {
  return value.replace(/(?:\|[0-9a-f]{2})+/gi, run =>
    decode(Buffer.from(run.replaceAll('|', ''), 'hex')),
  )
}

/** Removes blanks. Not trim(): U+00A0 and U+3000 may be parts of names, or of a character that is not decoded yet. */
export function trimBlanks(text: string): string {
  const isBlank = (at: number) => text[at] === ' ' || text[at] === '\t'
  let start = 0
  let end = text.length
  while (start < end && isBlank(start)) start++
  while (end > start && isBlank(end - 1)) end--
  return text.slice(start, end)
}

/** Encodings with characters of several bytes, by TextDecoder's names. */
const MULTI_BYTE = ['gbk', 'gb18030', 'big5', 'shift_jis', 'euc-jp', 'euc-kr']
const ASCII = Buffer.from(Array.from({ length: 95 }, (_, i) => 32 + i))

/**
 * Returns a decoder for `encoding`, with another one for bytes that are not valid in it.
 *
 * Text in a one-byte encoding is hardly ever valid UTF-8 by chance. So valid UTF-8 is tried first, because other tools write
 * UTF-8 whatever the file says. For GBK and similar ones the chance is real (one Chinese character in six), so there the
 * file's encoding is tried first.
 */
function decoderOf(encoding: string | undefined): Decode {
  const utf8 = strict('utf-8') as TextDecoder
  const named = encoding === undefined ? undefined : strict(encoding)
  // Node's own windows-1252 is Latin-1 in some versions (nodejs/node#56542): see windows1252.
  const declared = named?.encoding === 'windows-1252' ? undefined : named
  const isMultiByte = declared !== undefined && MULTI_BYTE.includes(declared.encoding)
  const inOrder = isMultiByte ? [declared, utf8] : [utf8, ...(declared ? [declared] : [])]
  return bytes => {
    for (const decoder of inOrder) {
      try {
        return decoder.decode(bytes)
      } catch {
        // The bytes are not valid in this encoding.
      }
    }
    return windows1252(bytes)
  }
}

/** Returns a decoder that refuses invalid bytes; undefined for an encoding that changes ASCII. */
function strict(encoding: string): TextDecoder | undefined {
  try {
    const decoder = new TextDecoder(encoding, { fatal: true, ignoreBOM: true })
    return decoder.decode(ASCII) === ASCII.toString('latin1') ? decoder : undefined
  } catch {
    return undefined
  }
}

/** The characters 0x80 to 0x9f, where windows-1252 differs from Latin-1; the five unassigned ones stay. */
const WINDOWS_1252 = '€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ'

const windows1252: Decode = bytes =>
  bytes
    .toString('latin1')
    .replace(/[\x80-\x9f]/g, c => WINDOWS_1252[c.charCodeAt(0) - 0x80] as string)
