/** Fields and structures: to bytes and back. */
import t from 'tap'
import {
  bits64be,
  bytes,
  exact,
  type Field,
  i32le,
  layout,
  u16be,
  u16le,
  u32be,
  u32le,
  u64be,
  u64le,
  u8,
} from '../src/binary.js'

const cases: { title: string; field: Field<unknown>; value: unknown; hex: string }[] = [
  { title: 'u8', field: u8, value: 0xfe, hex: 'fe' },
  { title: 'u16be', field: u16be, value: 0xfedc, hex: 'fedc' },
  { title: 'u32be', field: u32be, value: 0xfedcba98, hex: 'fedcba98' },
  { title: 'u64be', field: u64be, value: 2 ** 53 - 1, hex: '001fffffffffffff' },
  { title: 'u64be of 2^32', field: u64be, value: 2 ** 32, hex: '0000000100000000' },
  { title: 'bits64be', field: bits64be, value: 1n << 63n, hex: '8000000000000000' },
  { title: 'u16le', field: u16le, value: 0xfedc, hex: 'dcfe' },
  { title: 'u32le', field: u32le, value: 0xfedcba98, hex: '98badcfe' },
  { title: 'i32le', field: i32le, value: -2, hex: 'feffffff' },
  { title: 'u64le', field: u64le, value: 0x1_0000_0002, hex: '0200000001000000' },
  { title: 'bytes', field: bytes(3), value: Buffer.from('abc'), hex: '616263' },
]
for (const { title, field, value, hex } of cases) {
  t.test(title, async t => {
    const b = Buffer.alloc(field.size + 2)
    field.put(b, 1, value)
    t.equal(b.toString('hex'), `00${hex}00`)
    t.same(field.get(b, 1), value)
  })
}

t.test('a number that would be rounded is damage', async t => {
  t.equal(exact(2 ** 53 - 1), 2 ** 53 - 1)
  t.throws(() => exact(2 ** 53), { code: 'CORRUPT' })
  t.throws(() => u64be.get(Buffer.from('0020000000000000', 'hex'), 0), { code: 'CORRUPT' })
  t.throws(() => u64be.put(Buffer.alloc(8), 0, 2 ** 53), { code: 'CORRUPT' })
})

t.test('a structure', async t => {
  const POINT = layout({ x: u16be, y: u32be, name: bytes(2) })
  const value = { x: 1, y: 2, name: Buffer.from('ab') }
  t.equal(POINT.size, 8)
  t.same(POINT.at, { x: 0, y: 2, name: 6 })
  t.equal(POINT.encode(value).toString('hex'), '0001000000026162')
  const b = Buffer.alloc(10, 0xff)
  POINT.put(b, 1, value)
  t.equal(b.toString('hex'), 'ff0001000000026162ff')
  t.same(POINT.decode(b, 1), value)
})
