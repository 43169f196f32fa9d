import t from 'tap'
import type { ImageFs } from '../../../src/fs/protocol/image-fs.js'
import { answer } from '../../../src/fs/protocol/opcodes.js'
import { message, readIn, u32 } from '../messages.js'
import { listedFs, NODE, smallFs } from '../small-image.js'

const READDIR = 28
const READDIRPLUS = 44
const ENTRY_BYTES = 128

interface Listed {
  name: string
  node: number
  blocks: number
}

/** Lists the root as the kernel does, with `size` bytes of room at a time. */
function list(fs: ImageFs, opcode: number, size: number): { files: Listed[]; requests: number } {
  const files: Listed[] = []
  let requests = 0
  for (let offset = 0; ; requests++) {
    const got = answer(fs, message({ opcode, args: readIn({ offset, size }) }))!
    const payload = got.subarray(16)
    if (payload.length === 0) return { files, requests }
    if (payload.length > size) throw new RangeError(`${payload.length} bytes for ${size}`)
    for (let at = 0; at < payload.length; ) {
      const isPlus = opcode === READDIRPLUS
      const entry = isPlus ? payload.subarray(at, at + ENTRY_BYTES) : undefined
      if (isPlus) at += ENTRY_BYTES
      offset = Number(payload.readBigUInt64LE(at + 8))
      const nameBytes = payload.readUInt32LE(at + 16)
      files.push({
        name: payload.toString('utf8', at + 24, at + 24 + nameBytes),
        node: Number(entry?.readBigUInt64LE(0) ?? 0),
        blocks: Number(entry?.readBigUInt64LE(40 + 16) ?? 0),
      })
      at += Math.ceil((24 + nameBytes) / 8) * 8
    }
  }
}

t.test('listings that do not fit into one reply', async t => {
  const COUNT = 3000
  const names = ['.', '..', ...Array.from({ length: COUNT }, (_, index) => `file${index}`)]
  for (const opcode of [READDIR, READDIRPLUS]) {
    const isPlus = opcode === READDIRPLUS
    // One entry at a time, the C library's buffer, and all at once.
    for (const size of [isPlus ? 160 : 32, 32768, 2 ** 20]) {
      const { files, requests } = list(listedFs(COUNT, new Float64Array(COUNT)), opcode, size)
      t.same(
        files.map(file => file.name),
        names,
        `${isPlus ? 'READDIRPLUS' : 'READDIR'} by ${size}`,
      )
      t.equal(requests < COUNT, size > 1000)
      t.equal(requests === 1, size === 2 ** 20)
    }
  }
})

t.test('room for no entry at all', async t => {
  for (const [opcode, size] of [
    [READDIR, 31],
    [READDIRPLUS, 159],
  ] as const) {
    const got = answer(smallFs(t), message({ opcode, args: readIn({ size }) }))
    t.equal(got?.length, 16)
  }
})

t.test('READDIRPLUS counts nothing: asking for a file waits, listing does not', async t => {
  const counts = new Float64Array(3).fill(-1)
  counts[1] = 1024
  const { files } = list(listedFs(3, counts), READDIRPLUS, 4096)
  t.same(files.slice(2), [
    { name: 'file0', node: 0, blocks: 0 },
    { name: 'file1', node: 17, blocks: 2 },
    { name: 'file2', node: 0, blocks: 0 },
  ])
  t.same([...counts], [-1, 1024, -1])
})

t.test('a read as large as the kernel asks for', async t => {
  const asked = message({ opcode: 15, node: NODE.disk, args: readIn({ size: 2 ** 20 }) })
  t.equal(answer(smallFs(t), asked)?.length, 16 + 5220)
})

t.test('each opening of stats.json keeps its text', async t => {
  const fs = smallFs(t)
  const open = () => {
    const got = answer(fs, message({ opcode: 14, node: NODE.stats, args: `${u32(0)} ${u32(0)}` }))
    return Number(got?.readBigUInt64LE(16))
  }
  const handles = [open(), open(), open()]
  t.same(handles, [0, 1, 2])
  const read = message({ opcode: 15, node: NODE.stats, args: readIn({ fh: handles[1]! }) })
  t.match(answer(fs, read)?.toString(), '"requests"')
})
