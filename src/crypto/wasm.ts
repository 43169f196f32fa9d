/**
 * The part of a WebAssembly assembler that `simd-workspace.ts` needs. Each function returns bytes of the binary format
 * (WebAssembly Core Specification 2.0, chapter 5).
 */

type Code = readonly number[]

/** Encodes an unsigned number as LEB128. */
function unsigned(value: number): Code {
  return value < 0x80 ? [value] : [(value % 0x80) | 0x80, ...unsigned(Math.floor(value / 0x80))]
}

/** Encodes a signed number as LEB128. */
function signed(value: number): Code {
  const isLast = value >= -0x40 && value < 0x40
  return isLast ? [value & 0x7f] : [(value & 0x7f) | 0x80, ...signed(value >> 7)]
}

const vector = (items: readonly Code[]): Code => [...unsigned(items.length), ...items.flat()]
const sized = (content: Code): Code => [...unsigned(content.length), ...content]
const name = (text: string): Code => sized([...Buffer.from(text)])

const I32 = 0x7f
const V128 = 0x7b
const FUNCTION = 0x60
const NO_RESULT = 0x40
const END = 0x0b

export const i32 = {
  const: (value: number): Code => [0x41, ...signed(value)],
  ltUnsigned: [0x49] as Code,
  add: [0x6a] as Code,
  multiply: [0x6c] as Code,
}

const simd = (opcode: number, ...immediate: Code): Code => [0xfd, ...unsigned(opcode), ...immediate]

/** Vector instructions. Addresses are on the stack; `offset` is added to them. */
export const v128 = {
  load: (offset: number): Code => simd(0x00, 0, ...unsigned(offset)),
  store: (offset: number): Code => simd(0x0b, 0, ...unsigned(offset)),
  /** Four words of 32 bits. */
  const: (words: Uint32Array): Code => simd(0x0c, ...Buffer.from(words.buffer)),
  and: simd(0x4e),
  xor: simd(0x51),
  /** Shifts words of 32 bits arithmetically to the right, by the count on the stack. */
  shiftRight32: simd(0xac),
  /** Shifts words of 64 bits to the left by the count on the stack. */
  shiftLeft64: simd(0xcb),
  /** Picks words of 32 bits, in the given order, from the lower of two values on the stack. */
  pick32: (...words: readonly number[]): Code =>
    simd(0x0d, ...words.flatMap(word => [0, 1, 2, 3].map(byte => word * 4 + byte))),
}

export const local = {
  get: (index: number): Code => [0x20, ...unsigned(index)],
  set: (index: number): Code => [0x21, ...unsigned(index)],
  tee: (index: number): Code => [0x22, ...unsigned(index)],
}

/** Runs `body`, and repeats it while it leaves a value other than 0 on the stack. */
export const repeat = (...body: readonly Code[]): Code => [
  0x03,
  NO_RESULT,
  ...body.flat(),
  ...[0x0d, 0],
  END,
]

export interface WasmFunction {
  readonly name: string
  /** Local 0 is the only parameter, an i32; these follow it. */
  readonly i32Locals: number
  readonly v128Locals: number
  readonly body: readonly Code[]
}

/** Returns a module that exports these functions and a memory of `pages` times 64 KiB as "memory". */
export function assemble(pages: number, functions: readonly WasmFunction[]): Uint8Array {
  const section = (id: number, items: readonly Code[]): Code => [id, ...sized(vector(items))]
  const bodies = functions.map(({ i32Locals, v128Locals, body }) =>
    sized([
      ...vector([
        [...unsigned(i32Locals), I32],
        [...unsigned(v128Locals), V128],
      ]),
      ...body.flat(),
      END,
    ]),
  )
  return Uint8Array.from([
    ...Buffer.from('\0asm'),
    ...[1, 0, 0, 0],
    ...section(1, [[FUNCTION, ...vector([[I32]]), ...vector([])]]),
    ...section(
      3,
      functions.map(() => [0]),
    ),
    ...section(5, [[1, ...unsigned(pages), ...unsigned(pages)]]),
    ...section(7, [
      [...name('memory'), 2, 0],
      ...functions.map((f, index) => [...name(f.name), 0, ...unsigned(index)]),
    ]),
    ...section(10, bodies),
  ])
}
