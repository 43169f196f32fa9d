/** Snapshots of vmdk disks: child disks that vimgfs makes, and that QEMU and vimgfs read and write. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as commit } from '../../src/cli/commit.js'
import { run as snapshot } from '../../src/cli/snapshot.js'
import { openImage } from '../../src/index.js'
import { noise } from '../fixtures/model.js'
import { descriptorText } from '../fixtures/vmdk-builder.js'
import { runHere } from '../support/command.js'
import { needs, tempFolder } from '../support/run.js'
import { convertedBy, qemuImg, qemuIo } from './qemu.js'

const MIB = 2 ** 20
const SIZE = 4 * MIB

const here = (...args: string[]) => runHere(snapshot, args, '/')

async function diskOf(image: string): Promise<Buffer> {
  const opened = await openImage(image)
  const disk = Buffer.alloc(opened.disk.sizeBytes)
  opened.disk.read(disk, 0)
  opened.close()
  return disk
}

async function write(image: string, bytes: Buffer, offset: number): Promise<void> {
  const opened = await openImage(image, { access: 'write' })
  opened.disk.write(bytes, offset)
  opened.close()
}

async function made(t: Test, subformat: string): Promise<string> {
  const image = join(tempFolder(t), 'disk.vmdk')
  await qemuImg('create', '-q', '-f', 'vmdk', '-o', `subformat=${subformat}`, image, '4M')
  await qemuIo(image, ['write -P 7 64k 200k', 'write -P 8 3M 64k'], ['-f', 'vmdk'])
  return image
}

for (const subformat of ['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse']) {
  t.test(`a child of ${subformat}, and back`, needs('qemu-img', 'qemu-io'), async t => {
    const base = await made(t, subformat)
    const folder = join(base, '..')
    writeFileSync(join(folder, 'machine.vmsd'), '.encoding = "UTF-8"\n')
    const files = readdirSync(folder)
    const before = files.map(name => readFileSync(join(folder, name)))
    const disk = await diskOf(base)
    const { code, stdout } = await here('create', base, 'before')
    t.equal(code, 0)
    t.match(stdout, /disk-before\.vmdk holds what is written from now on.*\nVMware does not list/)
    const child = join(folder, 'disk-before.vmdk')
    t.ok((await diskOf(child)).equals(disk), 'it reads as the disk')
    t.ok((await convertedBy(child, undefined, 'vmdk')).equals(disk), 'QEMU agrees')
    const info = JSON.parse(await qemuImg('info', '-f', 'vmdk', '--output=json', child))
    t.equal(info['format-specific'].data['create-type'], 'monolithicSparse')
    t.equal(info['backing-filename'], 'disk.vmdk')
    await write(child, noise(100_000, 1), MIB)
    await qemuIo(child, ['write -P 9 128k 64k'], ['-f', 'vmdk'])
    const changed = Buffer.from(disk)
    noise(100_000, 1).copy(changed, MIB)
    changed.fill(9, 128 * 1024, 192 * 1024)
    t.ok((await diskOf(child)).equals(changed))
    t.ok((await convertedBy(child, undefined, 'vmdk')).equals(changed), 'QEMU agrees')
    for (const [i, name] of files.entries()) {
      t.ok(readFileSync(join(folder, name)).equals(before[i] as Buffer), `${name} is as it was`)
    }
    // A child of the child.
    t.match(await here('create', '-q', child, 'again'), { code: 0, stdout: '' })
    t.ok((await diskOf(join(folder, 'disk-before-again.vmdk'))).equals(changed))
    t.match(await runHere(commit, ['--force', child], '/'), { code: 0 })
    t.ok((await diskOf(base)).equals(changed), 'it is merged back')
    t.ok((await diskOf(child)).equals(changed), 'the child opens afterwards')
  })
}

t.test("a server's disk gets a child of its kind", needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const base = join(folder, 'disk.vmdk')
  writeFileSync(join(folder, 'disk-flat.vmdk'), noise(SIZE, 3))
  const text = descriptorText('monolithicSparse', SIZE / 512, 'disk-flat.vmdk')
  writeFileSync(base, text.replace('SPARSE', 'VMFS').replace('monolithicSparse', 'vmfs'))
  t.match(await here('create', base, 'x'), { code: 0 })
  const child = join(folder, 'disk-x.vmdk')
  t.match(readFileSync(child, 'latin1'), /parentCID=1234abcd\n(.|\n)*createType="vmfsSparse"/)
  t.ok(existsSync(join(folder, 'disk-x-delta.vmdk')))
  t.ok((await diskOf(child)).equals(noise(SIZE, 3)))
  t.ok((await convertedBy(child, undefined, 'vmdk')).equals(noise(SIZE, 3)), 'QEMU agrees')
  await write(child, noise(5000, 4), 70_000)
  const changed = noise(SIZE, 3)
  noise(5000, 4).copy(changed, 70_000)
  t.ok((await convertedBy(child, undefined, 'vmdk')).equals(changed), 'QEMU agrees')
})

t.test('what is refused leaves nothing behind', needs('qemu-img', 'qemu-io'), async t => {
  const base = await made(t, 'monolithicFlat')
  const folder = join(base, '..')
  const files = readdirSync(folder)
  const refused = async (says: RegExp, ...args: string[]) => {
    t.match(await here(...args), { code: 1, stderr: says }, args.join(' '))
    t.same(readdirSync(folder), files)
  }
  await refused(/cannot be a part of a file name/, 'create', base, 'a/b')
  await refused(/cannot be a part of a file name/, 'create', base, 'a"b')
  await refused(/./, 'create', join(folder, 'disk-flat.vmdk'), 'x')
  await refused(/no snapshots in them; snapshots of it are child disks/, 'delete', base, 'x')
  const opened = await openImage(base, { access: 'write' })
  opened.disk.write(noise(512, 1), 0)
  await refused(/in use/, 'create', base, 'x')
  opened.close()
  writeFileSync(join(folder, 'disk-x.vmdk'), 'mine')
  t.match(await here('create', base, 'x'), { code: 1, stderr: /of this name already/ })
  t.equal(readFileSync(join(folder, 'disk-x.vmdk'), 'utf8'), 'mine')
})
