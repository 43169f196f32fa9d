/** Images that another program has open: each command refuses in one line, and touches nothing. */
import {
  closeSync,
  copyFileSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { run as commit } from '../../src/cli/commit.js'
import { run as compare } from '../../src/cli/compare.js'
import { run as convert } from '../../src/cli/convert.js'
import { run as create } from '../../src/cli/create.js'
import { run as diff } from '../../src/cli/diff.js'
import { run as map } from '../../src/cli/map.js'
import { run as rebase } from '../../src/cli/rebase.js'
import { run as resize } from '../../src/cli/resize.js'
import { run as snapshot } from '../../src/cli/snapshot.js'
import { createImage } from '../../src/image/making/create-image.js'
import { openImage } from '../../src/index.js'
import { lockImage } from '../../src/io/locks.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { tempFolder } from '../support/run.js'

const SIZE = 2 ** 20

/** Makes images of a format: `top` on `base`, and `other`, which could be a base. */
async function makeImages(folder: string, format: string): Promise<void> {
  const at = (name: string) => join(folder, name)
  const fill = async (name: string, seed: number) => {
    const image = await openImage(at(name), { format, access: 'write' })
    image.disk.write(noise(64 * 1024, seed), seed * 1024)
    image.close()
  }
  await createImage(at('base'), { format, sizeBytes: SIZE })
  await fill('base', 1)
  copyFileSync(at('base'), at('other'))
  await createImage(at('top'), { format, backing: { name: 'base', format } })
  await fill('top', 2)
  writeFileSync(at('source'), noise(SIZE, 3))
}

interface Case {
  readonly title: string
  readonly run: (args: string[]) => Promise<number>
  readonly args: (format: string) => string[]
  /** Whether it changes `top`. */
  readonly isWriting: boolean
  /** Whether it does not care who writes the base. */
  readonly ignoresBase?: boolean
  readonly only?: string
}

const CASES: readonly Case[] = [
  { title: 'resize', run: resize, args: () => ['top', '+1M'], isWriting: true, only: 'qcow2' },
  { title: 'commit', run: commit, args: () => ['top'], isWriting: true },
  { title: 'rebase', run: rebase, args: f => ['-b', 'other', '-F', f, 'top'], isWriting: true },
  {
    title: 'rebase -u',
    run: rebase,
    args: f => ['-u', '-b', 'other', '-F', f, 'top'],
    isWriting: true,
    ignoresBase: true,
  },
  {
    title: 'snapshot create',
    run: snapshot,
    args: () => ['create', 'top', 'new'],
    isWriting: true,
    ignoresBase: true,
    only: 'qcow2',
  },
  {
    title: 'convert -n',
    run: convert,
    args: f => ['-n', '-f', 'raw', '-O', f, 'source', 'top'],
    isWriting: true,
  },
  {
    title: 'convert --force',
    run: convert,
    args: f => ['--force', '-f', 'raw', '-O', f, 'source', 'top'],
    isWriting: true,
    ignoresBase: true,
  },
  {
    title: 'create --force',
    run: create,
    args: f => ['--force', '-f', f, 'top', '1M'],
    isWriting: true,
    ignoresBase: true,
  },
  { title: 'convert', run: convert, args: () => ['top', 'new'], isWriting: false },
  { title: 'compare', run: compare, args: () => ['top', 'other'], isWriting: false },
  { title: 'map', run: map, args: () => ['top'], isWriting: false },
  { title: 'diff', run: diff, args: () => ['top', 'other'], isWriting: false },
]

for (const format of ['qcow2', 'vmdk']) {
  for (const { title, run, args, isWriting, ignoresBase = false, only = format } of CASES) {
    if (only !== format) continue
    t.test(`${title}, ${format}`, async t => {
      const folder = tempFolder(t)
      await makeImages(folder, format)
      const contents = () =>
        readdirSync(folder).map(name => [name, readFileSync(join(folder, name), 'base64')])
      const before = contents()
      const refused = async (name: string, purpose: 'read' | 'write', isRefused: boolean) => {
        if (!isRefused) return
        const fd = openSync(join(folder, name), 'r+')
        try {
          lockImage(fd, name, purpose)
          const { code, stderr, stdout } = await runHere(run, args(format), folder)
          const what = `${name} is ${purpose === 'read' ? 'read' : 'written'}: ${stderr}`
          t.equal(code, title === 'compare' ? 2 : 1, what)
          t.match(stderr, /^vimgfs: [^\n]*in use[^\n]*\n$/, what)
          t.equal(stdout, '', what)
          t.strictSame(contents(), before, `${what}: nothing has changed`)
        } finally {
          closeSync(fd)
        }
      }
      await refused('top', 'write', true)
      await refused('top', 'read', isWriting)
      await refused('base', 'write', !ignoresBase)
      // A program that reads the base would see it change.
      await refused('base', 'read', title === 'commit')
      await refused('other', 'write', title === 'rebase')
    })
  }
}
