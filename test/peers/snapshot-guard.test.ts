/** QEMU takes and deletes snapshots while somebody reads one: he gets its bytes, or is told that it is gone. */
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { compareDisks } from '../../src/image/comparing/compare.js'
import { convertToNew } from '../../src/image/convert/convert.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { changesOf } from '../../src/image/comparing/diff.js'
import { mapOf } from '../../src/image/map.js'
import { openSource, type Source, whileThere } from '../../src/image/reading/source.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { TextSlots } from '../../src/fs/status/control.js'
import { NodeOperations } from '../../src/fs/nodes/node-operations.js'
import { SEEK_DATA } from '../../src/io/libc.js'
import { type ImageNode, Tree } from '../../src/fs/nodes/tree.js'
import { needs, run, tempFolder } from '../support/run.js'

const skip = needs('qemu-img', 'qemu-io')
const { ESTALE } = constants.errno
const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
const MIB = 2 ** 20
const APPEARANCE = {
  ...{ uid: 0, gid: 0, fileMode: 0o400, diskMode: 0o400, dirMode: 0o500 },
  modified: { seconds: 0, nanoseconds: 0 },
}

const write = (image: string, pattern: number) =>
  run('qemu-io', ['-c', `write -q -P ${pattern} 0 1M`, image])
const snapshot = (image: string, how: '-c' | '-d', tag: string) =>
  run('qemu-img', ['snapshot', how, tag, image])

interface Opened {
  readonly image: string
  /** Reads a whole snapshot; returns its only byte value, -1 for different ones, or an errno as its name. */
  read(tag: string): number | 'ESTALE'
  seek(tag: string): number
  open(tag: string): number
  isThere(tag: string): boolean
  readonly gone: string[]
}

/** An image with the snapshots one, two and three, in which all bytes are 1, 2 and 3. The disk has 4s. */
async function opened(t: Test, isGuarded = true, options: string[] = []): Promise<Opened> {
  const image = join(tempFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, image, '1M'])
  for (const [index, tag] of ['one', 'two', 'three'].entries()) {
    await write(image, index + 1)
    await snapshot(image, '-c', tag)
  }
  await write(image, 4)
  const chain = openChain(image, { takesLocks: false })
  t.teardown(() => closeChain(chain))
  const { entries } = catalogOf(chain)
  const views = new ViewSet(chain.layers, CACHES)
  const gone: string[] = []
  const nodes = new NodeOperations({
    tree: new Tree(entries, APPEARANCE),
    views,
    layers: chain.layers,
    allocated: new Float64Array(entries.length).fill(-1),
    slots: new TextSlots(),
    controlText: { status: () => '', stats: () => '' },
    ...(isGuarded && { onGone: () => gone.push('gone') }),
  })
  const nodeOf = (tag: string) => nodes.tree.child(1, `disk@${tag}.raw`) as ImageNode
  const bytes = Buffer.alloc(MIB)
  return {
    image,
    read: tag => {
      const got = nodes.read(nodeOf(tag), 0, bytes, MIB, 0)
      if (got === -ESTALE) return 'ESTALE'
      const first = bytes[0] as number
      return bytes.every(byte => byte === first) ? first : -1
    },
    seek: tag => nodes.lseek(nodeOf(tag), 0, SEEK_DATA),
    open: tag => nodes.open(nodeOf(tag), 0),
    isThere: tag => views.guardOf(nodeOf(tag).entry)?.isThere() === true,
    gone,
  }
}

for (const options of [[], ['-o', 'compat=0.10'], ['-o', 'extended_l2=on,cluster_size=64k']]) {
  t.test(`a snapshot that is deleted while others stay ${options.join(' ')}`, skip, async t => {
    const { image, read, seek, open, gone } = await opened(t, true, options)
    for (const [index, tag] of ['one', 'two', 'three'].entries()) t.equal(read(tag), index + 1)
    // The entries of the others move.
    await snapshot(image, '-d', 'one')
    t.same([read('two'), read('three'), gone.length], [2, 3, 0])
    t.same([read('one'), seek('one'), open('one')], ['ESTALE', -ESTALE, -ESTALE])
    t.equal(open('two'), 0)
    // The freed clusters have other bytes now.
    await write(image, 5)
    await snapshot(image, '-c', 'four')
    await write(image, 6)
    t.same([read('one'), read('two'), read('three')], ['ESTALE', 2, 3])
    await snapshot(image, '-d', 'two')
    await snapshot(image, '-d', 'three')
    t.same([read('two'), read('three')], ['ESTALE', 'ESTALE'])
    t.ok(gone.length > 0)
  })
}

t.test('a snapshot that is taken anew under the same tag and ID is another one', skip, async t => {
  const { image, read } = await opened(t)
  t.equal(read('three'), 3)
  await snapshot(image, '-d', 'three')
  await snapshot(image, '-c', 'three')
  t.match(await run('qemu-img', ['snapshot', '-l', image]), /^3 +three/m)
  t.same([read('three'), read('one')], ['ESTALE', 1])
})

t.test('a table that moves, and comes back to its place, with the same entries', skip, async t => {
  const { image, isThere, read } = await opened(t)
  t.equal(read('one'), 1)
  for (let round = 0; round < 6; round++) {
    await snapshot(image, '-c', `more${round}`)
    await snapshot(image, '-d', `more${round}`)
    t.same([isThere('one'), read('one'), read('three')], [true, 1, 3])
  }
})

t.test('without the guard the bytes of others are read', skip, async t => {
  const { image, read } = await opened(t, false)
  await snapshot(image, '-d', 'one')
  await write(image, 5)
  await snapshot(image, '-c', 'four')
  await write(image, 6)
  t.not(read('one'), 1)
  t.not(read('one'), 'ESTALE')
})

t.test('a copy of a snapshot that is deleted meanwhile gets no name', skip, async t => {
  const { image } = await opened(t)
  const target = `${image}.raw`
  const source = await openSource(`${image}@one`, { takesLocks: false })
  t.teardown(() => source.close())
  const other = await openSource(`${image}@two`, { takesLocks: false })
  t.teardown(() => other.close())
  const request = { path: target, format: 'raw', options: {}, isPacked: false, force: false }
  const convert = (from: Source) =>
    convertToNew(from, {
      ...request,
      ...{ isVerified: false, base: undefined, passphrase: undefined, sparseBytes: 4096 },
    })
  await convert(source)
  rmSync(target)
  await snapshot(image, '-d', 'one')
  await t.rejects(convert(source), { message: /its snapshot has been deleted while it was read/ })
  t.notOk(existsSync(target))
  await t.rejects(compareDisks(source, other), { message: /has been deleted/ })
  await convert(other)
  t.ok(readFileSync(target).every(byte => byte === 2))
})

t.test(
  'what is found in the tables of a snapshot that is deleted meanwhile ends with an error',
  skip,
  async t => {
    const { image } = await opened(t)
    const [one, two] = await Promise.all(
      ['one', 'two'].map(tag => openSource(`${image}@${tag}`, { takesLocks: false })),
    )
    t.teardown(() => one?.close())
    t.teardown(() => two?.close())
    const [before, after] = [one, two] as [Source, Source]
    const map = () => [...whileThere([before], mapOf(before, image, 0, Number.POSITIVE_INFINITY))]
    const changes = () => [...whileThere([after, before], changesOf(after, before))]
    t.ok(map().length > 0)
    t.ok(changes().length > 0)
    const half = whileThere([before], mapOf(before, image, 0, Number.POSITIVE_INFINITY))
    await snapshot(image, '-d', 'one')
    const gone = { message: /its snapshot has been deleted while it was read/ }
    t.throws(map, gone)
    t.throws(changes, gone)
    t.throws(() => [...half], gone)
    const failing = function* (): Generator<number> {
      yield 1
      throw new Error('the tables are damaged')
    }
    t.throws(() => [...whileThere([before], failing())], gone, 'not the damage that is none')
    t.throws(() => [...whileThere([after], failing())], { message: 'the tables are damaged' })
  },
)
