/** commit and rebase: QEMU reads the same disk before and after, and finds nothing wrong. */
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as check } from '../../src/cli/check.js'
import { run as commit } from '../../src/cli/commit.js'
import { run as rebase } from '../../src/cli/rebase.js'
import { openImage } from '../../src/index.js'
import { rebaseImage } from '../../src/image/changing/rebase.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { needs, run, tempFolder } from '../support/run.js'
import { creating } from './encrypted.js'
import { qemuImg, qemuIo, randomWrites } from './qemu.js'

const M = 2 ** 20
const tools = needs('qemu-img', 'qemu-io')

interface Kind {
  readonly format: string
  readonly options?: readonly string[]
}

const QCOW2: Kind = { format: 'qcow2', options: ['-o', 'cluster_size=4096'] }
const EXTENDED: Kind = { format: 'qcow2', options: ['-o', 'extended_l2=on'] }
const OLD: Kind = { format: 'qcow2', options: ['-o', 'compat=0.10,cluster_size=4096'] }
const VMDK: Kind = { format: 'vmdk' }
const RAW: Kind = { format: 'raw' }
/** What QEMU can write into a vmdk. */
const WRITES = ['write', 'partial', 'zero'] as const

/** Makes an image of `kind` with random content, zeros included, on `below` if that is given. */
async function make(
  folder: string,
  name: string,
  kind: Kind,
  sizeBytes: number,
  seed: number,
  below?: { name: string; kind: Kind },
): Promise<string> {
  const file = join(folder, name)
  const on = below ? ['-b', below.name, '-F', below.kind.format] : []
  const options = kind.options ?? []
  await run(
    'qemu-img',
    ['create', '-q', '-f', kind.format, ...options, ...on, file, String(sizeBytes)],
    { cwd: folder },
  )
  const kinds = kind === VMDK ? WRITES : undefined
  await qemuIo(
    file,
    randomWrites(seed, sizeBytes, { cluster: 4096, count: 12, ...(kinds && { kinds }) }),
    ['-f', kind.format],
  )
  return file
}

/** Returns the whole disk, as qemu-img reads it. */
async function content(file: string, format: string): Promise<string> {
  const raw = `${file}.content`
  await qemuImg('convert', '-f', format, '-O', 'raw', file, raw)
  return (await run('sha256sum', [raw])).split(' ')[0] as string
}

const PAIRS: Record<string, [Kind, Kind]> = {
  'qcow2 on qcow2': [QCOW2, QCOW2],
  'qcow2 on raw': [QCOW2, RAW],
  'qcow2 with subclusters on qcow2': [EXTENDED, QCOW2],
  'qcow2 of version 2 on vmdk': [OLD, VMDK],
  'vmdk on vmdk': [VMDK, VMDK],
}

const sound = async (t: Test, file: string, format: string) => {
  if (format === 'raw') return
  t.match(await qemuImg('check', '-f', format, file), /No errors were found/)
}

t.test('commit', tools, async t => {
  for (const [title, [top, base]] of Object.entries(PAIRS)) {
    await t.test(title, async t => {
      const folder = tempFolder(t)
      const isVmdk = top.format === 'vmdk'
      const below = await make(folder, 'base', base, 2 * M, 1)
      const size = base === VMDK ? 2 * M : 3 * M
      const image = await make(folder, 'top', top, size, 2, { name: 'base', kind: base })
      const before = await content(image, top.format)
      const { code, stderr, stdout } = await runHere(commit, [image], folder)
      t.equal(code, 0, stderr)
      t.match(stdout, isVmdk ? /keeps its data/ : /empty now/)
      t.equal(await content(below, base.format), before, 'the base has it')
      t.equal(await content(image, top.format), before, 'the image reads the same')
      await sound(t, below, base.format)
      await sound(t, image, top.format)
      if (isVmdk) return
      const map = await qemuImg('map', '--output=json', '-f', top.format, image)
      t.notMatch(map, /"depth": 0, "present": true/, 'the image is empty')
      t.ok(statSync(image).blocks * 512 < M, 'its space is given back')
    })
  }

  await t.test('into a deeper layer', async t => {
    const folder = tempFolder(t)
    const base = await make(folder, 'base', QCOW2, M, 1)
    const middle = await make(folder, 'middle', QCOW2, M, 2, { name: 'base', kind: QCOW2 })
    const image = await make(folder, 'top', QCOW2, M, 3, { name: 'middle', kind: QCOW2 })
    const before = await content(image, 'qcow2')
    const { code, stderr } = await runHere(commit, ['-b', base, image], folder)
    t.equal(code, 0, stderr)
    t.equal(await content(base, 'qcow2'), before)
    t.equal(await content(image, 'qcow2'), before)
    for (const file of [base, middle, image]) await sound(t, file, 'qcow2')
  })

  await t.test('a vmdk whose commit was cut off before it named the new content ID', async t => {
    const folder = tempFolder(t)
    const base = await make(folder, 'base', VMDK, M, 1)
    const image = await make(folder, 'top', VMDK, M, 2, { name: 'base', kind: VMDK })
    const before = await content(image, 'vmdk')
    const child = readFileSync(image)
    t.equal((await runHere(commit, [image], folder)).code, 0)
    writeFileSync(image, child)
    t.equal((await runHere(commit, [image], folder)).code, 1)
    const { code, stderr } = await runHere(commit, ['--ignore-cid', image], folder)
    t.equal(code, 0, stderr)
    t.equal(await content(image, 'vmdk'), before)
    t.equal(await content(base, 'vmdk'), before)
  })

  await t.test('encrypted into encrypted', async t => {
    const folder = tempFolder(t)
    writeFileSync(join(folder, 'one'), 'one')
    writeFileSync(join(folder, 'two'), 'two')
    const secrets = ['one', 'two'].flatMap(id => ['--object', `secret,id=${id},file=${id}`])
    const create = (id: string, ...rest: string[]) =>
      creating([
        ...['create', '-q', '-f', 'qcow2', ...secrets],
        ...['-o', `encrypt.format=luks,encrypt.key-secret=${id},encrypt.iter-time=10`, ...rest],
      ])
    const before = process.cwd()
    process.chdir(folder)
    try {
      await create('one', 'base', '1M')
      await create('two', '-b', 'base', '-F', 'qcow2', 'top', '1M')
    } finally {
      process.chdir(before)
    }
    const image = join(folder, 'top')
    const passphrase = async (file: string) => (file === image ? 'two' : 'one')
    const write = async (name: string, seed: number, offset: number) => {
      const open = await openImage(join(folder, name), { access: 'write', passphrase, force: true })
      open.disk.write(noise(100_000, seed), offset)
      open.close()
    }
    const read = async (name: string) => {
      const open = await openImage(join(folder, name), { passphrase })
      const bytes = Buffer.alloc(M)
      open.disk.read(bytes, 0)
      open.close()
      return bytes
    }
    await write('base', 1, 0)
    await write('top', 2, 50_000)
    const held = await read('top')
    const passphrases = ['two', 'one', 'one'].flatMap(name => ['--passphrase-file', name])
    const { code, stderr } = await runHere(commit, [...passphrases, 'top'], folder)
    t.equal(code, 0, stderr)
    for (const name of ['base', 'top']) {
      t.ok((await read(name)).equals(held), name)
      const { code, stdout } = await runHere(check, [name], folder)
      t.equal(code, 0, stdout)
    }
  })
})

t.test('what commit refuses', tools, async t => {
  const folder = tempFolder(t)
  await make(folder, 'base', QCOW2, M, 1)
  await make(folder, 'top', QCOW2, M, 2, { name: 'base', kind: QCOW2 })
  const says = async (args: readonly string[], words: RegExp) => {
    const { code, stderr } = await runHere(commit, args, folder)
    t.equal(code, 1)
    t.match(stderr, words)
    t.equal(stderr.trimEnd().split('\n').length, 1, 'one line')
  }
  await says(['base'], /no backing file.*convert/)
  await says(['-b', 'nowhere', 'top'], /none of the images.*base/)
  await make(folder, 'other.qcow2', QCOW2, M, 3, { name: 'base', kind: QCOW2 })
  await says(['top'], /"other\.qcow2" would be broken/)
  t.equal((await runHere(commit, ['--force', 'top'], folder)).code, 0)
  await qemuImg('snapshot', '-c', 'a', join(folder, 'other.qcow2'))
  await says(['other.qcow2'], /snapshots/)
})

t.test('rebase', tools, async t => {
  for (const [title, [top, base]] of Object.entries(PAIRS)) {
    await t.test(title, async t => {
      const folder = tempFolder(t)
      const size = 2 * M
      await make(folder, 'old', base, size, 1)
      await make(folder, 'new', base, size + (base === VMDK ? 0 : M), 5)
      const image = await make(folder, 'top', top, size, 2, { name: 'old', kind: base })
      const before = await content(image, top.format)
      const { code, stderr } = await runHere(rebase, ['-b', 'new', image], folder)
      t.equal(code, 0, stderr)
      const info = JSON.parse(await qemuImg('info', '--output=json', image))
      t.equal(info['backing-filename'], 'new')
      t.equal(await content(image, top.format), before)
      await sound(t, image, top.format)
      const none = await runHere(rebase, ['-b', '', image], folder)
      t.equal(none.code, 0, none.stderr)
      const alone = JSON.parse(await qemuImg('info', '--output=json', image))
      t.equal(alone['backing-filename'], undefined)
      t.equal(await content(image, top.format), before, 'and without a backing file')
      await sound(t, image, top.format)
    })
  }

  await t.test('an error in the midst of it leaves the disk as it was', async t => {
    const folder = tempFolder(t)
    await make(folder, 'old', QCOW2, 8 * M, 1)
    await make(folder, 'new', QCOW2, 8 * M, 5)
    const image = await make(folder, 'top', EXTENDED, 8 * M, 2, { name: 'old', kind: QCOW2 })
    const before = await content(image, 'qcow2')
    for (const last of [1, 3, 6, 10]) {
      let calls = 0
      const progress = async () => {
        if (++calls === last) throw new Error('stopped')
      }
      const ask = async () => []
      await t.rejects(rebaseImage(image, { backing: 'new', ask, progress }), /stopped/)
      t.equal(await content(image, 'qcow2'), before)
      await sound(t, image, 'qcow2')
    }
  })

  await t.test('-u -F names a file that is not there', async t => {
    const folder = tempFolder(t)
    await make(folder, 'old', QCOW2, M, 1)
    const image = await make(folder, 'top', QCOW2, M, 2, { name: 'old', kind: QCOW2 })
    const args = ['-u', '-b', '/srv/elsewhere.qcow2', '-F', 'qcow2', image]
    t.match(await runHere(rebase, args, folder), { code: 0, stderr: '' })
    const info = JSON.parse(await qemuImg('info', '--output=json', image))
    t.match(info, {
      'backing-filename': '/srv/elsewhere.qcow2',
      'backing-filename-format': 'qcow2',
    })
  })

  await t.test('-u changes the name only', async t => {
    const folder = tempFolder(t)
    await make(folder, 'old', QCOW2, M, 1)
    const image = await make(folder, 'top', QCOW2, M, 2, { name: 'old', kind: QCOW2 })
    const before = await content(image, 'qcow2')
    const name = `${'n'.repeat(200)}.qcow2`
    await run('mv', ['old', name], { cwd: folder })
    for (const [moved, next] of [
      [name, 'short'],
      ['short', name],
      [name, 'old'],
    ] as const) {
      const { code, stderr } = await runHere(rebase, ['-u', '-b', moved, image], folder)
      t.equal(code, 0, stderr)
      t.equal(await content(image, 'qcow2'), before)
      await sound(t, image, 'qcow2')
      await run('mv', [moved, next], { cwd: folder })
    }
  })
})

t.test('what rebase refuses', tools, async t => {
  const folder = tempFolder(t)
  await make(folder, 'old', QCOW2, M, 1)
  await make(folder, 'top', QCOW2, M, 2, { name: 'old', kind: QCOW2 })
  await qemuImg('create', '-q', '-f', 'qcow', join(folder, 'disk.qcow'), '1M')
  const says = async (args: readonly string[], words: RegExp, expected = 1) => {
    const { code, stderr } = await runHere(rebase, args, folder)
    t.equal(code, expected)
    t.match(stderr, words)
    t.equal(stderr.trimEnd().split('\n').length, 1, 'one line')
  }
  await says(['top'], /-b BASE is missing/, 2)
  await says(['-b', 'missing', 'top'], /missing.*no such file/)
  await says(['-b', 'top', 'top'], /stand on itself/)
  await says(['-b', 'old', 'disk.qcow'], /qcow image keeps/)
  await says(['-b', 'x'.repeat(1100), '-u', 'top'], /top|too long/)
  await qemuImg('snapshot', '-c', 'a', join(folder, 'top'))
  await says(['-b', '', 'top'], /has snapshots/)
})
