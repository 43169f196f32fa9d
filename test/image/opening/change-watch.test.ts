/** Somebody changes the files of an image that is open for reading. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ChangeWatch, watchedFiles } from '../../../src/image/opening/change-watch.js'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { buildImage } from '../../fixtures/qcow2-builder.js'
import { tempFolder } from '../../support/run.js'

const SECONDS = 1_700_000_000.25

interface Watched {
  readonly image: string
  /** The raw file below it. */
  readonly base: string
  readonly watch: ChangeWatch
  readonly noticed: string[]
}

/** An image on a backing file, both with an mtime of long ago. */
function watched(t: Test): Watched {
  const folder = tempFolder(t)
  const [image, base] = [join(folder, 'disk.qcow2'), join(folder, 'base.raw')]
  fs.writeFileSync(base, Buffer.alloc(8192, 'b'))
  buildImage({ sizeBytes: 8192, backing: { name: 'base.raw', format: 'raw' } }).write(image)
  for (const file of [image, base]) fs.utimesSync(file, SECONDS, SECONDS)
  const chain = openChain(image)
  t.teardown(() => closeChain(chain))
  const noticed: string[] = []
  const watch = new ChangeWatch(watchedFiles(chain.layers), ChangeWatch.memory(), path =>
    noticed.push(path),
  )
  return { image, base, watch, noticed }
}

/** Overwrites a byte, and keeps the mtime. */
function overwrite(file: string, at: number): void {
  const fd = fs.openSync(file, 'r+')
  fs.writeSync(fd, Buffer.from([7]), 0, 1, at)
  fs.futimesSync(fd, SECONDS, SECONDS)
  fs.closeSync(fd)
}

function replace(file: string): void {
  fs.copyFileSync(file, `${file}.new`)
  fs.utimesSync(`${file}.new`, SECONDS, SECONDS)
  fs.renameSync(`${file}.new`, file)
}

type Change = (w: Watched) => void

const CHANGES: Record<string, Change> = {
  'a byte, with a new mtime': ({ image }) => fs.utimesSync(image, SECONDS, SECONDS + 0.001),
  'an mtime that goes back': ({ image }) => fs.utimesSync(image, SECONDS, SECONDS - 3600),
  'the size, with the old mtime': ({ image }) => {
    fs.truncateSync(image, fs.statSync(image).size + 512)
    fs.utimesSync(image, SECONDS, SECONDS)
  },
  'the header, with the old mtime': ({ image }) => overwrite(image, 100),
  'the header of the backing file': ({ base }) => overwrite(base, 0),
  'another file at the path, with the same content and times': ({ image }) => replace(image),
  'another file at the path of the backing file': ({ base }) => replace(base),
  'another folder on the way': ({ image }) => {
    const folder = join(image, '..')
    fs.cpSync(folder, `${folder}.new`, { recursive: true, preserveTimestamps: true })
    fs.renameSync(folder, `${folder}.old`)
    fs.renameSync(`${folder}.new`, folder)
    fs.rmSync(`${folder}.old`, { recursive: true })
  },
  'a file that was removed, and another one made': ({ image }) => {
    const bytes = fs.readFileSync(image)
    fs.rmSync(image)
    fs.writeFileSync(image, bytes)
  },
}

const HARMLESS: Record<string, Change> = {
  nothing: () => {},
  'another mode, and a link': ({ image }) => {
    fs.chmodSync(image, 0o640)
    fs.linkSync(image, `${image}.link`)
  },
  'another atime': ({ image }) => fs.utimesSync(image, SECONDS + 99, SECONDS),
  'a path that is gone': ({ image }) => fs.rmSync(image),
  'a path that names a link to the file': ({ image }) => {
    fs.renameSync(image, `${image}.moved`)
    fs.symlinkSync(`${image}.moved`, image)
  },
  'another file in the folder': ({ image }) => fs.writeFileSync(`${image}.other`, 'x'),
}

for (const [what, change] of Object.entries(CHANGES)) {
  t.test(`a change: ${what}`, async t => {
    for (const isApart of [false, true]) {
      const w = watched(t)
      const look = async () => {
        if (isApart) await w.watch.lookApart(0, 9)
        else {
          w.watch.makeDue()
          w.watch.hasChanged()
        }
      }
      await look()
      t.same([w.watch.isChanged, w.noticed], [false, []])
      change(w)
      t.equal(w.watch.hasChanged(), false, 'nobody looks when it is not due')
      await look()
      t.equal(w.watch.isChanged, true)
      t.equal(w.watch.hasChanged(), true)
      const changed = what.includes('backing') ? [w.base] : [w.image]
      t.match(w.noticed, changed, 'the file is named')
      await look()
      t.equal(w.noticed.length, 1, 'once')
    }
  })
}

for (const [what, change] of Object.entries(HARMLESS)) {
  t.test(`no change: ${what}`, async t => {
    const w = watched(t)
    change(w)
    await w.watch.lookApart(0, 9)
    t.equal(w.watch.look(), false)
    t.same(w.noticed, [])
  })
}

t.test('a change between opening the image and watching it', async t => {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  buildImage({ sizeBytes: 8192 }).write(image)
  const chain = openChain(image)
  t.teardown(() => closeChain(chain))
  fs.utimesSync(image, SECONDS, SECONDS)
  const watch = new ChangeWatch(watchedFiles(chain.layers), ChangeWatch.memory(), () => {})
  t.equal(watch.look(), true)
})

t.test('an image that is named by a descriptor has no path to look at', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  buildImage({ sizeBytes: 8192 }).write(image)
  const fd = fs.openSync(image, 'r')
  t.teardown(() => fs.closeSync(fd))
  const chain = openChain(`/proc/self/fd/${fd}`)
  t.teardown(() => closeChain(chain))
  t.same(
    watchedFiles(chain.layers).map(({ hasPath }) => hasPath),
    [false],
  )
})
