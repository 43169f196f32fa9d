/** The requests of the kernel that change the tree. */
import fc from 'fast-check'
import t from 'tap'
import { treeChangeOf } from '../../../src/fs/workers/errands.js'
import { IN_HEADER, OPCODE, ROOT_ID } from '../../../src/fs/protocol/protocol.js'
import { tagFor } from '../../../src/image/file-names.js'
import { holds } from '../../support/property.js'

const S_IFREG = 0o100000
const S_IFIFO = 0o010000

/** Returns a request with some words of 32 bits and then text. */
function message(opcode: number, words: readonly number[], text: string, node = ROOT_ID): Buffer {
  const head = Buffer.alloc(IN_HEADER.size)
  head.writeUInt32LE(opcode, IN_HEADER.at.opcode)
  head.writeBigUInt64LE(BigInt(node), IN_HEADER.at.nodeid)
  const args = Buffer.alloc(4 * words.length)
  for (const [i, word] of words.entries()) args.writeUInt32LE(word, 4 * i)
  return Buffer.concat([head, args, Buffer.from(text)])
}

const changeOf = (...args: Parameters<typeof message>) => {
  const bytes = message(...args)
  return treeChangeOf(bytes, bytes.length)
}

t.test('changes of the root folder', async t => {
  const create = { kind: 'create', name: 'a' }
  t.same(changeOf(OPCODE.CREATE, [1, 2, 3, 4], 'a\0'), create)
  t.same(changeOf(OPCODE.MKNOD, [S_IFREG | 0o644, 0, 0, 0], 'a\0'), create)
  t.equal(changeOf(OPCODE.MKNOD, [S_IFIFO, 0, 0, 0], 'a\0'), undefined)
  t.same(changeOf(OPCODE.UNLINK, [], 'a\0'), { kind: 'remove', name: 'a' })
  const rename = { kind: 'rename', name: 'a', to: 'longer' }
  t.same(changeOf(OPCODE.RENAME, [ROOT_ID, 0], 'a\0longer\0'), rename)
  t.same(changeOf(OPCODE.RENAME2, [ROOT_ID, 0, 1, 0], 'a\0longer\0'), rename)
  t.equal(changeOf(OPCODE.RENAME2, [ROOT_ID, 0, 2, 0], 'a\0longer\0'), undefined, 'an exchange')
  t.equal(changeOf(OPCODE.RENAME, [2, 0], 'a\0longer\0'), undefined, 'into another folder')
  t.equal(changeOf(OPCODE.UNLINK, [], 'status.json\0', 2), undefined, 'in another folder')
  t.equal(changeOf(OPCODE.WRITE, [], 'a\0'), undefined)
})

t.test('no bytes make it fail', async () => {
  const opcodes = fc.constantFrom<number>(...Object.values(OPCODE))
  const bytes = fc.tuple(opcodes, fc.uint8Array({ maxLength: 60 }), fc.constantFrom(1, 2))
  await holds(bytes, 200, ([opcode, tail, node]) => {
    const whole = Buffer.concat([message(opcode, [], '', node), tail])
    for (const length of [0, 10, whole.length]) treeChangeOf(whole.subarray(0, length), length)
  })
})

t.test('a name gives the tag that gets this name', async t => {
  const cases: [string, string | undefined][] = [
    ['disk@x.raw', 'x'],
    ['disk@a%2Fb@c.raw', 'a/b@c'],
    ['disk@%25.raw', '%'],
    ['disk@ü ~1.raw', 'ü ~1'],
    ['disk@%.raw', undefined],
    ['disk@%2f.raw', undefined],
    ['disk@%41.raw', undefined],
    ['disk@%FF.raw', undefined],
    ['disk@.raw', undefined],
    ['disk@x.p2.raw', undefined],
    ['disk@x.vmstate', undefined],
    ['other@x.raw', undefined],
    [`disk@${'x'.repeat(243)}.raw`, undefined],
  ]
  for (const [name, tag] of cases) t.equal(tagFor('/folder/disk.qcow2', name), tag, name)
})
