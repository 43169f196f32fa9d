/** Laid out files beside the same disks as they are read: all formats and shapes, on real file systems. */
import fs, {
  appendFileSync,
  copyFileSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { catalogOf } from '../../../src/image/catalog.js'
import { layOutFile } from '../../../src/image/layout/lay-out.js'
import { planLayout } from '../../../src/image/layout/plan.js'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { readView } from '../../../src/image/reading/engine.js'
import { ViewSet } from '../../../src/image/reading/view-set.js'
import { noise } from '../../fixtures/model.js'
import { noReflinks, qemuIo, REFLINK_TYPES, reflinkFolder } from '../../support/reflinks.js'
import { run, tempFolder } from '../../support/run.js'

const MIB = 2 ** 20
const SIZE = 2 * MIB + 512

/** Lays out each file of an image, and compares it. Returns how many bytes each shares, or why it is not laid out. */
function outcomes(
  t: Test,
  image: string,
  copiedBytes = 0,
  allowPaths: string[] = [],
): (number | string)[] {
  const chain = openChain(image, { access: 'read', allowPaths })
  try {
    const views = new ViewSet(chain.layers, { metadataBytes: MIB, clusterBytes: MIB })
    return catalogOf(chain).entries.map(entry => {
      const view = views.viewOf(entry)
      const { sizeBytes, name } = entry
      const beside = chain.layers[entry.layer]?.fd ?? -1
      const isLate = () => false
      const limits = { blockBytes: 4096, copiedBytes, parts: 1000, isLate }
      const plan = planLayout(view, sizeBytes, limits)
      if (typeof plan === 'string') return plan
      const fd = layOutFile({ view, plan, sizeBytes, beside, isLate })
      if (typeof fd === 'string') return fd
      const expected = Buffer.alloc(sizeBytes)
      readView(view, expected, 0, sizeBytes, 0)
      const found = Buffer.alloc(sizeBytes)
      t.equal(fs.fstatSync(fd).size, sizeBytes, name)
      fs.readSync(fd, found, 0, sizeBytes, 0)
      fs.closeSync(fd)
      t.ok(found.equals(expected), `${image} ${name}`)
      return plan.sharedBytes
    })
  } finally {
    closeChain(chain)
  }
}

const create = (image: string, options: string, ...rest: string[]) =>
  run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, ...rest, image, String(SIZE)])

for (const type of REFLINK_TYPES) {
  t.test(`${type}: all shapes`, noReflinks(type), async t => {
    const folder = await reflinkFolder(t, type)
    const file = (name: string) => join(folder, name)
    const raw = file('raw.img')
    writeFileSync(raw, noise(SIZE, 5))

    for (const options of [
      'compat=0.10',
      'compat=1.1',
      'extended_l2=on,cluster_size=128k',
      'cluster_size=4k',
      'preallocation=full',
    ]) {
      const image = file(`${options}.qcow2`)
      await create(image, options)
      const zeros = options === 'compat=0.10' ? [] : ['write -z 256k 128k']
      const writes = ['write -P 1 64k 192k', ...zeros, 'write -P 2 1M 8k', 'write -P 3 2M 512']
      await qemuIo(image, 'qcow2', writes)
      await run('qemu-img', ['snapshot', '-c', 'snapshot', image])
      await qemuIo(image, 'qcow2', ['write -P 4 128k 64k', 'write -P 5 1536k 4k', 'discard 0 64k'])
      const [disk, snapshot] = outcomes(t, image)
      t.type(disk, 'number', `${options}: ${disk}`)
      t.type(snapshot, 'number', `${options}: ${snapshot}`)
    }

    const over = file('over.qcow2')
    await create(over, 'compat=1.1', '-b', raw, '-F', 'raw')
    await qemuIo(over, 'qcow2', ['write -P 6 64k 64k', 'write -z 512k 64k'])
    const top = file('top.qcow2')
    await create(top, 'compat=1.1', '-b', over, '-F', 'qcow2')
    await qemuIo(top, 'qcow2', ['write -P 7 1M 64k'])
    t.match(outcomes(t, top), [Number, Number, Number], 'a chain')

    const convert = (format: string, name: string, ...options: string[]) =>
      run('qemu-img', ['convert', '-f', 'raw', '-O', format, ...options, raw, file(name)])
    await convert('vmdk', 'sparse.vmdk')
    t.match(outcomes(t, file('sparse.vmdk')), [Number])
    t.match(outcomes(t, raw), [2 * MIB], 'raw')
    await convert('qcow2', 'small.qcow2', '-o', 'cluster_size=512')
    t.strictSame(outcomes(t, file('small.qcow2')), ['unaligned'])
    t.match(outcomes(t, file('small.qcow2'), 2 * SIZE), [Number], 'small clusters are copied')

    // Compressed.
    writeFileSync(raw, Buffer.alloc(MIB, 9))
    await convert('qcow2', 'packed.qcow2', '-c')
    await qemuIo(file('packed.qcow2'), 'qcow2', ['write -P 8 64k 64k'])
    t.strictSame(outcomes(t, file('packed.qcow2')), ['packed'])
    t.strictSame(outcomes(t, file('packed.qcow2'), MIB), [65_536])
    await convert('qcow2', 'all.qcow2', '-c')
    t.strictSame(outcomes(t, file('all.qcow2'), MIB), [0], 'all of it is written out')
  })

  t.test(`${type}: faults`, noReflinks(type), async t => {
    const folder = await reflinkFolder(t, type)
    const file = (name: string) => join(folder, name)
    const raw = file('raw.img')
    writeFileSync(raw, noise(MIB, 6))
    const image = file('image.qcow2')
    await run('qemu-img', ['convert', '-O', 'qcow2', raw, image])
    const far = join(tempFolder(t), 'far.img')
    copyFileSync(raw, far)
    const over = file('over.qcow2')
    await create(over, 'compat=1.1', '-b', far, '-F', 'raw')
    await qemuIo(over, 'qcow2', ['write -P 6 64k 64k'])
    t.equal(outcomes(t, over, 0, [dirname(far)])[0], 'otherFiles', 'a chain over two file systems')

    // The file becomes shorter after it was opened.
    const chain = openChain(image, { access: 'read' })
    t.teardown(() => closeChain(chain))
    const [entry] = catalogOf(chain).entries
    const { sizeBytes } = entry as NonNullable<typeof entry>
    const sizes = { metadataBytes: MIB, clusterBytes: MIB }
    const view = new ViewSet(chain.layers, sizes).viewOf(entry as NonNullable<typeof entry>)
    const isLate = () => false
    const limits = { blockBytes: 4096, copiedBytes: 0, parts: 1000, isLate }
    const plan = planLayout(view, sizeBytes, limits)
    const beside = chain.layers[0].fd
    if (typeof plan === 'string') return t.fail(plan)
    t.equal(layOutFile({ view, plan, sizeBytes, beside, isLate: () => true }), 'slow')
    const kept = layOutFile({ view, plan, sizeBytes, beside, isLate })
    const bytes = readFileSync(image)
    truncateSync(image, bytes.length / 2)
    t.equal(layOutFile({ view, plan, sizeBytes, beside, isLate }), 'otherFiles')
    // A file that was laid out before keeps its bytes, whatever others do with the image.
    appendFileSync(image, Buffer.alloc(MIB, 1))
    const fd = fs.openSync(image, 'r+')
    fs.writeSync(fd, Buffer.alloc(MIB, 2), 0, MIB, 0)
    fs.closeSync(fd)
    const found = Buffer.alloc(sizeBytes)
    fs.readSync(kept as number, found, 0, sizeBytes, 0)
    fs.closeSync(kept as number)
    t.ok(found.equals(readFileSync(raw)))
  })
}
