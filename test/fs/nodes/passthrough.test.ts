/** Tests which files may be passed through. The device here is none, so the kernel refuses all of them in the end. */
import { appendFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Backings } from '../../../src/fs/nodes/backings.js'
import { Passthrough } from '../../../src/fs/nodes/passthrough.js'
import { Tree } from '../../../src/fs/nodes/tree.js'
import { catalogOf } from '../../../src/image/catalog.js'
import { closeChain, type OpenOptions } from '../../../src/image/opening/chain.js'
import { ChangeWatch, watchedFiles } from '../../../src/image/opening/change-watch.js'
import { createDiskMemory } from '../../../src/image/writing/disk-memory.js'
import { storeOf } from '../../../src/image/layer.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { ViewSet } from '../../../src/image/reading/view-set.js'
import { attempt, needs, run, tempFolder } from '../../support/run.js'

const SIZE = 2 ** 20
const MAY = 'the kernel refuses its file'
const APPEARANCE = {
  ...{ uid: 0, gid: 0, fileMode: 0o440, diskMode: 0o440, dirMode: 0o550 },
  modified: { seconds: 0, nanoseconds: 0 },
}

interface Mounted extends OpenOptions {
  readonly isGrowable?: boolean
  readonly isForced?: boolean
  readonly why?: string
  readonly hasPassthrough?: boolean
}

/** Returns why the files of a mount are not passed through. */
function reasons(t: Test, image: string, options: Mounted): (string | undefined)[] {
  const { isGrowable = false, isForced = false, why, hasPassthrough = true, ...open } = options
  const chain = openChain(image, open)
  t.teardown(() => closeChain(chain))
  const { layers, isWritable } = chain
  const [top] = layers
  const memory = isWritable ? createDiskMemory(top, 1, storeOf(top)) : undefined
  const sizes = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
  const views = new ViewSet(layers, sizes, undefined, memory && { memory, thread: 0 })
  const watch = isWritable
    ? undefined
    : new ChangeWatch(watchedFiles(layers), ChangeWatch.memory(), () => {})
  const backings = new Backings()
  const rules = { why, isForced, copiedBytes: 0 }
  const passthrough = new Passthrough({ rules, backings, views, layers, isGrowable, watch })
  passthrough.connect({ device: -1, hasPassthrough })
  const { entries } = catalogOf(chain)
  return passthrough.report(new Tree(entries, APPEARANCE).images()).map(file => file.why)
}

t.test('why files are not passed through', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const file = (name: string) => join(folder, name)
  const raw = file('disk.img')
  writeFileSync(raw, Buffer.alloc(SIZE))
  const odd = file('odd.img')
  writeFileSync(odd, Buffer.alloc(SIZE + 100))
  const make = (format: string, name: string, options = '') =>
    run('qemu-img', [
      ...['convert', '-f', 'raw', '-O', format, ...(options ? ['-o', options] : [])],
      ...[odd, file(name)],
    ])
  writeFileSync(odd, Buffer.alloc(SIZE, 7))
  await make('qcow2', 'whole.qcow2')
  await make('qcow2', 'data.qcow2', `data_file=${file('data.raw')},data_file_raw=on`)
  await make('vmdk', 'flat.vmdk', 'subformat=monolithicFlat')
  await make('vmdk', 'long.vmdk', 'subformat=monolithicFlat')
  appendFileSync(file('long-flat.vmdk'), 'more')
  const base = file('base.img')
  writeFileSync(base, Buffer.alloc(SIZE, 9))
  const over = file('over.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', over])

  const forced: Mounted = { access: 'read', isForced: true }
  const written: Mounted = { access: 'write' }
  const cases: [title: string, image: string, Mounted, (string | RegExp)[]][] = [
    ['raw', raw, { ...written, format: 'raw' }, [MAY]],
    ['raw that was guessed', raw, written, [/--format raw/]],
    ['raw that grows', raw, { ...written, format: 'raw', isGrowable: true }, [/growable/]],
    ['raw, only read', raw, { access: 'read' }, [/could change its file unnoticed/]],
    ['raw, only read, allowed', raw, forced, [MAY]],
    ['passthrough=off', raw, { ...forced, why: 'off' }, ['off']],
    ['an old kernel', raw, { ...forced, hasPassthrough: false }, [/Linux 6.9/]],
    ['an overlay that is written', over, written, [/notes each write/, MAY]],
    ['an empty overlay', over, forced, [MAY, MAY]],
    ['a raw data file', file('data.qcow2'), forced, [MAY]],
    ['the same, written', file('data.qcow2'), written, [/notes each write/]],
    ['a flat vmdk', file('flat.vmdk'), forced, [MAY]],
    ['the same, written', file('flat.vmdk'), written, [/notes each write/]],
    ['an extent that is too long', file('long.vmdk'), forced, [/longer or shorter/]],
    ['qcow2', file('whole.qcow2'), forced, [/not those of one file/]],
  ]
  for (const [title, image, options, expected] of cases) {
    t.match(reasons(t, image, options), expected, title)
  }
})

t.test('an immutable file cannot change unnoticed', needs('chattr'), async t => {
  const raw = join(tempFolder(t), 'disk.img')
  writeFileSync(raw, Buffer.alloc(SIZE))
  const mayChange = /could change its file unnoticed/
  t.match(reasons(t, raw, { access: 'read' }), [mayChange])
  // Only root may, and not on every file system.
  const { code } = await attempt('chattr', ['+i', raw])
  if (code !== 0) return
  t.teardown(() => run('chattr', ['-i', raw]))
  t.match(reasons(t, raw, { access: 'read' }), [MAY])
})
