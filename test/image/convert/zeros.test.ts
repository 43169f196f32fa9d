/** Finding zeros. */
import t from 'tap'
import { areZeros } from '../../../src/image/convert/zeros.js'

t.test('one byte anywhere is found', async t => {
  const bytes = Buffer.alloc(200_000)
  t.ok(areZeros(bytes, 0, bytes.length))
  t.ok(areZeros(bytes, 7, 7), 'nothing at all')
  for (const at of [5, 6, 4095, 65_535, 65_536, 70_000, 199_998, 199_999]) {
    bytes[at] = 1
    t.notOk(areZeros(bytes, 5, bytes.length), `at ${at}`)
    t.ok(areZeros(bytes, 0, at), `before ${at}`)
    t.ok(areZeros(bytes, at + 1, bytes.length), `after ${at}`)
    bytes[at] = 0
  }
})
