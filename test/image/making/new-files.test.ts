/** New images get their names when they are whole, and not before. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ImageError, oneLine } from '../../../src/errors.js'
import { run as convert } from '../../../src/cli/convert.js'
import { beginImage, targetOf } from '../../../src/image/making/new-image.js'
import { NewFiles, type NewFilesOptions } from '../../../src/image/making/new-files.js'
import { lockImage } from '../../../src/io/locks.js'
import { runHere } from '../../support/command.js'
import { run, tempFolder } from '../../support/run.js'

const unsupported = (): never => {
  throw Object.assign(new Error('no O_TMPFILE'), { code: 'EOPNOTSUPP' })
}

const KINDS: Record<string, NewFilesOptions> = {
  'files without a name': {},
  'temporary names': { openUnnamed: unsupported },
}

const put = ({ store }: NewFiles['main'], text: string) =>
  store.write(Buffer.from(text), 0, text.length, 0)

const refusal = (act: () => unknown): string => {
  try {
    act()
  } catch (error) {
    if (error instanceof ImageError) return oneLine(error)
    throw error
  }
  return 'no error'
}

for (const [kind, options] of Object.entries(KINDS)) {
  t.test(kind, async t => {
    t.test('the names come with commit, the main file last', async t => {
      const folder = tempFolder(t)
      const files = new NewFiles(join(folder, 'disk.vmdk'), options)
      const extent = files.beside('disk-flat.vmdk')
      put(files.main, 'descriptor')
      put(extent, 'data')
      const visible = () => fs.readdirSync(folder).filter(name => !name.startsWith('.'))
      t.strictSame(visible(), [])
      files.commit()
      t.strictSame(fs.readdirSync(folder).sort(), ['disk-flat.vmdk', 'disk.vmdk'])
      t.equal(fs.readFileSync(join(folder, 'disk.vmdk'), 'utf8'), 'descriptor')
      t.equal(fs.readFileSync(join(folder, 'disk-flat.vmdk'), 'utf8'), 'data')
      const umask = process.umask()
      t.equal(fs.statSync(join(folder, 'disk.vmdk')).mode & 0o777, 0o666 & ~umask)
    })

    t.test('nothing is left after discard', async t => {
      const folder = tempFolder(t)
      const files = new NewFiles(join(folder, 'disk.raw'), options)
      files.beside('disk-2.raw')
      put(files.main, 'half')
      files.discard()
      t.strictSame(fs.readdirSync(folder), [])
    })

    t.test('a file is replaced only by force, and keeps its mode', async t => {
      const folder = tempFolder(t)
      const file = join(folder, 'disk.raw')
      fs.writeFileSync(file, 'old')
      fs.chmodSync(file, 0o640)
      t.match(
        refusal(() => new NewFiles(file, options)),
        /disk.raw: .*already; .*--force/,
      )
      const files = new NewFiles(file, { ...options, force: true })
      put(files.main, 'new')
      t.equal(fs.readFileSync(file, 'utf8'), 'old')
      files.commit()
      t.equal(fs.readFileSync(file, 'utf8'), 'new')
      t.equal(fs.statSync(file).mode & 0o777, 0o640)
      t.strictSame(fs.readdirSync(folder), ['disk.raw'])
    })

    t.test('an old descriptor never describes new extents', async t => {
      const folder = tempFolder(t)
      const at = (name: string) => join(folder, name)
      const names = ['disk', 'disk-1', 'disk-2']
      for (const name of names) fs.writeFileSync(at(name), `old ${name}`)
      const replacing = () => {
        const files = new NewFiles(at('disk'), { ...options, force: true })
        put(files.main, 'new disk')
        for (const name of ['disk-1', 'disk-2']) put(files.beside(name), `new ${name}`)
        return files
      }
      const preventing = (name: string, act: () => void) => {
        fs.rmSync(at(name))
        fs.mkdirSync(at(name))
        t.throws(act, ImageError)
        fs.rmdirSync(at(name))
      }
      const first = replacing()
      preventing('disk-1', () => first.commit())
      t.equal(fs.readFileSync(at('disk'), 'utf8'), 'old disk', 'nothing was replaced yet')
      fs.writeFileSync(at('disk-1'), 'old disk-1')
      const second = replacing()
      preventing('disk-2', () => second.commit())
      t.strictSame(fs.readdirSync(folder), ['disk-1'], 'a part was replaced')
      for (const name of names) fs.writeFileSync(at(name), `old ${name}`)
      replacing().commit()
      t.strictSame(fs.readdirSync(folder).sort(), names)
      for (const name of names) t.equal(fs.readFileSync(at(name), 'utf8'), `new ${name}`)
    })

    t.test('a file that comes meanwhile is not replaced', async t => {
      const folder = tempFolder(t)
      const file = join(folder, 'disk.raw')
      const files = new NewFiles(file, options)
      put(files.main, 'new')
      fs.writeFileSync(file, 'came meanwhile')
      t.match(
        refusal(() => files.commit()),
        /another program/,
      )
      t.equal(fs.readFileSync(file, 'utf8'), 'came meanwhile')
      t.strictSame(fs.readdirSync(folder), ['disk.raw'])
    })

    t.test('a descriptor gets no name before its extents have theirs', async t => {
      const folder = tempFolder(t)
      const files = new NewFiles(join(folder, 'disk.vmdk'), options)
      put(files.main, 'descriptor')
      put(files.beside('disk-flat.vmdk'), 'data')
      fs.writeFileSync(join(folder, 'disk-flat.vmdk'), 'came meanwhile')
      t.match(
        refusal(() => files.commit()),
        /another program has made a file of this name/,
      )
      t.strictSame(fs.readdirSync(folder), ['disk-flat.vmdk'])
    })

    t.test('a link stays, and its target is replaced', async t => {
      const folder = tempFolder(t)
      fs.writeFileSync(join(folder, 'target'), 'old')
      fs.symlinkSync('target', join(folder, 'link'))
      const files = new NewFiles(join(folder, 'link'), { ...options, force: true })
      put(files.main, 'new')
      files.commit()
      t.equal(fs.readlinkSync(join(folder, 'link')), 'target')
      t.equal(fs.readFileSync(join(folder, 'target'), 'utf8'), 'new')
    })
  })
}

t.test('what may not be replaced', async t => {
  const folder = tempFolder(t)
  const file = join(folder, 'disk.raw')
  fs.writeFileSync(file, 'old')
  const force = (name: string, more: NewFilesOptions = {}) =>
    refusal(() => new NewFiles(name, { force: true, ...more }))
  const fd = fs.openSync(file, 'r')
  t.teardown(() => fs.closeSync(fd))
  t.match(force(file, { sources: [{ fd }] }), /made of/)
  t.match(force(folder), /folder/)
  t.match(force(join(folder, 'missing', 'x')), /its folder.*no such file/)
  t.match(force(`${file}/x`), /disk.raw\/x: /)
  t.match(force(''), /no file name/)
  await run('mkfifo', [join(folder, 'fifo')])
  t.match(force(join(folder, 'fifo')), /neither/)
  fs.symlinkSync('nowhere', join(folder, 'dangling'))
  t.match(force(join(folder, 'dangling')), /does not exist/)
  lockImage(fd, file, 'read')
  t.match(force(file), /in use/)
  t.equal(fs.readFileSync(file, 'utf8'), 'old')
})

t.test('two files of one name', async (t: Test) => {
  const folder = tempFolder(t)
  const files = new NewFiles(join(folder, 'disk.raw'))
  t.match(
    refusal(() => files.beside('disk.raw')),
    /two files/,
  )
  files.discard()
})

const CHILD = `
import { NewFiles } from './src/image/making/new-files.ts'
const openUnnamed = () => { throw Object.assign(new Error('x'), { code: 'EOPNOTSUPP' }) }
const files = new NewFiles(process.env.TARGET, { openUnnamed })
files.main.store.write(Buffer.from('half'), 0, 4, 0)
process.kill(process.pid, process.env.SIGNAL)
setInterval(() => {}, 1000)
`

t.test('a signal leaves no temporary name behind', async t => {
  const folder = tempFolder(t)
  const { attempt } = await import('../../support/run.js')
  const env = { ...process.env, TARGET: join(folder, 'disk.raw'), SIGNAL: 'SIGTERM' }
  const args = ['--import', 'tsx', '--input-type=module', '-e', CHILD]
  const { code, stderr } = await attempt(process.execPath, args, { env })
  t.equal(code, 143, stderr)
  t.strictSame(fs.readdirSync(folder), [])
})

t.test('an image of several files is whole at every moment', async t => {
  for (const openUnnamed of [undefined, unsupported]) {
    for (const before of ['twoGbMaxExtentFlat', 'without help', 'monolithicFlat']) {
      const isHelped = before !== 'without help'
      const subformat = isHelped ? before : 'twoGbMaxExtentFlat'
      const folder = tempFolder(t)
      const at = (name: string) => join(folder, name)
      fs.writeFileSync(at('old.raw'), Buffer.alloc(4096, 1))
      const convertTo = (source: string, subformat: string) =>
        runHere(
          convert,
          [
            '-O',
            'vmdk',
            '-o',
            `subformat=${subformat}`,
            '--force',
            '-f',
            'raw',
            source,
            'disk.vmdk',
          ],
          folder,
        )
      t.match(await convertTo('old.raw', subformat), { code: 0, stderr: '' })
      let isNew = false
      let missing = 0
      const look = () => {
        if (!fs.existsSync(at('disk.vmdk'))) {
          missing++
          return
        }
        const text = fs.readFileSync(at('disk.vmdk'), 'latin1')
        const extents = [...text.matchAll(/^RW (\d+) FLAT "(.*)" 0$/gm)]
        const bytes = extents.map(([, sectors, name]) => {
          const file = fs.readFileSync(at(name as string))
          t.equal(file.length, Number(sectors) * 512)
          return file
        })
        const value = Buffer.concat(bytes)
        const expected = Buffer.alloc(value.length, value.length === 8192 ? 2 : 1)
        t.ok(value.length > 0 && value.equals(expected), 'the old image or the new one')
        t.ok(value.length === 8192 || !isNew, 'never back to the old one')
        isNew = value.length === 8192
      }
      const { renameSync, rmSync, linkSync } = fs
      const watched = <F extends (...args: never[]) => void>(call: F) =>
        ((...args) => {
          look()
          call(...args)
          look()
        }) as F
      const restore = () => Object.assign(fs, { renameSync, rmSync, linkSync })
      t.teardown(restore)
      Object.assign(fs, {
        renameSync: watched(renameSync),
        rmSync: watched(rmSync),
        linkSync: watched(linkSync),
      })
      const files = new NewFiles(at('disk.vmdk'), {
        force: true,
        ...(openUnnamed && { openUnnamed }),
      })
      const options = { subformat: 'twoGbMaxExtentFlat' }
      const request = { format: 'vmdk', sizeBytes: 8192, options }
      const builder = await beginImage(targetOf(files), request)
      for (const { store, at: place, length } of builder.place(0, 8192)) {
        store.write(Buffer.alloc(length, 2), 0, length, place)
      }
      builder.finish()
      files.commit(isHelped ? builder.mainWith?.bind(builder) : undefined)
      restore()
      t.ok(isNew)
      t.equal(missing === 0, isHelped, `no image at ${missing} moments`)
      const kept = before === 'monolithicFlat' ? ['disk-flat.vmdk'] : []
      const names = ['disk-f001.vmdk', ...kept, 'disk.vmdk', 'old.raw']
      t.strictSame(fs.readdirSync(folder).sort(), names.sort())
    }
  }
})
