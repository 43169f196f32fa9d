/** A workspace in WebAssembly's memory. SIMD instructions work on 16 bytes at once. */
import { AES_BLOCK_BYTES } from './block-cipher.js'
import { CIPHER_SECTOR_BYTES } from './spec.js'
import { assemble, i32, local, repeat, v128, type WasmFunction } from './wasm.js'
import { TWEAK_FEEDBACK, WORKSPACE, type Workspace } from './workspace.js'

const PAGE_BYTES = 65536
/** Blocks that each round of the innermost loops handles. */
const UNROLLED = 4

/** The part of WebAssembly that is used here; node's types lack it. */
interface WebAssemblyApi {
  validate(bytes: Uint8Array): boolean
  Module: new (bytes: Uint8Array) => object
  Instance: new (module: object) => { readonly exports: unknown }
}

interface Exports {
  readonly memory: { readonly buffer: ArrayBuffer }
  addTweaks(sectors: number): void
  addMasks(bytes: number): void
}

/** Returns undefined if this node has no WebAssembly, or none with SIMD. */
export function simdWorkspace(): Workspace | undefined {
  const { WebAssembly } = globalThis as { WebAssembly?: WebAssemblyApi }
  const bytes = assemble(Math.ceil(WORKSPACE.end / PAGE_BYTES), [addTweaks(), addMasks()])
  if (!WebAssembly?.validate(bytes)) return undefined
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes))
  const { memory, addTweaks: tweaks, addMasks: masks } = exports as Exports
  return { memory: Buffer.from(memory.buffer), addTweaks: tweaks, addMasks: masks }
}

const blocks = Array.from({ length: UNROLLED }, (_, i) => i * AES_BLOCK_BYTES)

/** Adds `bytes` to the local with this index. */
const advance = (index: number, bytes: number) => [
  ...local.get(index),
  ...i32.const(bytes),
  ...i32.add,
  ...local.set(index),
]

/** Leaves on the stack whether the local `index` is below the local `end`. */
const isBelow = (index: number, end: number) => [
  ...local.get(index),
  ...local.get(end),
  ...i32.ltUnsigned,
]

/** data ^= masks, block by block. */
function addMasks(): WasmFunction {
  const end = 0
  const at = 1
  const addBlock = (offset: number) => [
    ...local.get(at),
    ...[...local.get(at), ...v128.load(WORKSPACE.data + offset)],
    ...[...local.get(at), ...v128.load(WORKSPACE.masks + offset)],
    ...v128.xor,
    ...v128.store(WORKSPACE.data + offset),
  ]
  return {
    name: 'addMasks',
    i32Locals: 1,
    v128Locals: 0,
    body: [
      repeat(...blocks.map(addBlock), advance(at, UNROLLED * AES_BLOCK_BYTES), isBelow(at, end)),
    ],
  }
}

/** data ^= (masks = tweak), for each sector. The tweak is doubled from block to block. */
function addTweaks(): WasmFunction {
  const sectors = 0
  const end = 1
  const iv = 2
  const at = 3
  const sectorEnd = 4
  const tweak = 5
  const signs = 6

  // Each half of the tweak passes the bit that it loses to the other: from the signs of words 1 and 3 to words 2 and 0.
  const carries = v128.const(Uint32Array.of(TWEAK_FEEDBACK, 0, 1, 0))
  const double = [
    ...[...local.get(tweak), ...i32.const(1), ...v128.shiftLeft64],
    ...[...local.get(tweak), ...i32.const(31), ...v128.shiftRight32, ...local.tee(signs)],
    ...[...local.get(signs), ...v128.pick32(3, 0, 1, 0), ...carries, ...v128.and],
    ...[...v128.xor, ...local.set(tweak)],
  ]
  const addBlock = (offset: number) => [
    ...[...local.get(at), ...local.get(tweak), ...v128.store(WORKSPACE.masks + offset)],
    ...local.get(at),
    ...[...local.get(at), ...v128.load(WORKSPACE.data + offset), ...local.get(tweak), ...v128.xor],
    ...v128.store(WORKSPACE.data + offset),
    ...double,
  ]
  return {
    name: 'addTweaks',
    i32Locals: 4,
    v128Locals: 2,
    body: [
      [
        ...local.get(sectors),
        ...i32.const(CIPHER_SECTOR_BYTES),
        ...i32.multiply,
        ...local.set(end),
      ],
      repeat(
        [...local.get(iv), ...v128.load(WORKSPACE.ivs), ...local.set(tweak)],
        advance(iv, AES_BLOCK_BYTES),
        [...local.get(at), ...i32.const(CIPHER_SECTOR_BYTES), ...i32.add, ...local.set(sectorEnd)],
        repeat(
          ...blocks.map(addBlock),
          advance(at, UNROLLED * AES_BLOCK_BYTES),
          isBelow(at, sectorEnd),
        ),
        isBelow(at, end),
      ),
    ],
  }
}
