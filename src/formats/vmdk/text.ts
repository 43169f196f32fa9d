/**
 * Text as VMware writes it: descriptors, .vmsd and .vmx files.
 *
 * Lines of `key = "value"`, the dictionary of VMware's tools (open-vm-tools, lib/dict/dictll.c). The
 * bytes are cut into lines, and each line is decoded on its own: in no encoding that VMware writes do
 * line ends, `=`, `#` or `"` occur within a character of several bytes, while `\` and `|` do.
 *
 * Every function takes time in proportion to its text, whatever the text is.
 */
import { TextDecoder } from 'node:util'

const BOM = Buffer.from([0xef, 0xbb, 0xbf])

export interface Text {
  /** As the file names it. */
  readonly encoding: string | undefined
  /** Without blanks around them; no empty ones and no comments. */
  readonly lines: readonly string[]
  /** Any bytes of the file as text. */
  readonly decode: Decode
}

type Decode = (bytes: Buffer) => string

/** `bytes` without a byte order mark, to the first NUL. */
export function textBytes(bytes: Buffer): Buffer {
  const start = bytes.subarray(0, BOM.length).equals(BOM) ? BOM.length : 0
  const nul = bytes.indexOf(0, start)
  return bytes.subarray(start, nul < 0 ? bytes.length : nul)
}

/**
 * QEMU gives a descriptor a new CID of as many digits as it needs, and leaves the last bytes of a text that
 * has become shorter behind its NUL (block/vmdk.c, vmdk_write_cid): fewer than the shortest line that
 * would say anything.
 */
const RESIDUE_BYTES = 7
/** Of text, and of no `key=value`. */
const RESIDUE = /^[\0\n\r\t -<>-~]*$/

/** Whether `bytes`, what follows a text from its NUL on, says nothing. */
export function isPadding(bytes: Buffer): boolean {
  const end = 1 + RESIDUE_BYTES
  return RESIDUE.test(bytes.toString('latin1', 0, end)) && bytes.subarray(end).every(b => b === 0)
}

/** The lines of `bytes`, decoded by what their `encodingKey` says. */
export function readText(bytes: Buffer, encodingKey: string): Text {
  const raw = lines(bytes)
  const encodingLine = raw.find(line => keyValue(line)?.key.toLowerCase() === encodingKey)
  const encoding = encodingLine === undefined ? undefined : keyValue(encodingLine)?.value
  const decode = decoderOf(encoding)
  const text = (line: string) =>
    /[\x80-\xff]/.test(line) ? decode(Buffer.from(line, 'latin1')) : line
  return { encoding, lines: raw.map(text), decode }
}

/** Bytes as characters of the same number, so that cutting them loses nothing. */
function lines(bytes: Buffer): string[] {
  return bytes
    .toString('latin1')
    .split(/\r\n|\n|\r/)
    .map(trimBlanks)
    .filter(line => line !== '' && !line.startsWith('#'))
}

/**
 * A line's key, as written, and its value, without quotes and comment. A value that begins with a
 * quote ends at the line's last one where it cannot be told otherwise: nobody escapes quotes in paths.
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

/** `|22` and the like, as the dictionary writes quotes, pipes and control characters. */
export function unescaped(value: string, decode: Decode): string {
  return value.replace(/(?:\|[0-9a-f]{2})+/gi, run =>
    decode(Buffer.from(run.replaceAll('|', ''), 'hex')),
  )
}

/** Not trim(): U+00A0 and U+3000 are parts of names, or of a character that is not decoded yet. */
export function trimBlanks(text: string): string {
  const isBlank = (at: number) => text[at] === ' ' || text[at] === '\t'
  let start = 0
  let end = text.length
  while (start < end && isBlank(start)) start++
  while (end > start && isBlank(end - 1)) end--
  return text.slice(start, end)
}

/** Encodings with characters of several bytes; by the names that TextDecoder gives them. */
const MULTI_BYTE = ['gbk', 'gb18030', 'big5', 'shift_jis', 'euc-jp', 'euc-kr']
const ASCII = Buffer.from(Array.from({ length: 95 }, (_, i) => 32 + i))

/**
 * Decodes by `encoding`, or what holds the bytes where it does not.
 *
 * Text in an encoding of one byte a character is hardly ever valid UTF-8 by chance, so valid UTF-8
 * goes first: other tools write it whatever the file says. With GBK and its like chance is real (one
 * Chinese character in six), so there the file's word goes first.
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
        // The bytes are not of this encoding.
      }
    }
    return windows1252(bytes)
  }
}

/** A decoder that refuses what is not of `encoding`; none for an encoding that changes ASCII. */
function strict(encoding: string): TextDecoder | undefined {
  try {
    const decoder = new TextDecoder(encoding, { fatal: true, ignoreBOM: true })
    return decoder.decode(ASCII) === ASCII.toString('latin1') ? decoder : undefined
  } catch {
    return undefined
  }
}

/** 0x80 to 0x9f, where windows-1252 is not Latin-1; the five that it leaves open stay as they are. */
const WINDOWS_1252 = '€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ'

const windows1252: Decode = bytes =>
  bytes
    .toString('latin1')
    .replace(/[\x80-\x9f]/g, c => WINDOWS_1252[c.charCodeAt(0) - 0x80] as string)
