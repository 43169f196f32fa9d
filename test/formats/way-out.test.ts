/** Messages about images whose files are not where, or what, they say: the way out has to lead out. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { oneLine } from '../../src/errors.js'
import { closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { checkMountpoint } from '../../src/fs/mounting/mount.js'
import { buildQcow } from '../fixtures/qcow-builder.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'

const SMALL: ImageSpec = { clusterBits: 16, sizeBytes: 2 ** 20 }
const qcow2 = (spec: Partial<ImageSpec> = {}) => buildImage({ ...SMALL, ...spec }).bytes()
const qcow = (backing?: string) =>
  buildQcow({ sizeBytes: 2 ** 20, ...(backing !== undefined && { backingName: backing }) }).bytes
const withVersion = (bytes: Buffer, version: number) => {
  bytes.writeUInt32BE(version, 4)
  return bytes
}
const descriptor = (hint: string) => `# Disk DescriptorFile
version=1
CID=12345678
parentCID=87654321
createType="monolithicFlat"
parentFileNameHint="${hint}"
RW 2048 FLAT "disk-flat.vmdk" 0
`

/** What opening `name` says, of a folder that has `files`; the folder's path is shown as FOLDER. */
function told(
  t: Test,
  files: Record<string, Buffer | string>,
  name: string,
  options?: OpenOptions,
): string {
  const folder = t.testdir({})
  mkdirSync(folder, { recursive: true })
  for (const [file, content] of Object.entries(files)) writeFileSync(join(folder, file), content)
  try {
    closeChain(openChain(join(folder, name), options))
    return 'opened'
  } catch (error) {
    return oneLine(error as Error).replaceAll(folder, 'FOLDER')
  }
}

t.test('formats that are not read: the command that converts them', async t => {
  const vdi = Buffer.alloc(4096)
  vdi.writeUInt32LE(0xbeda107f, 64)
  const says = told(t, { 'a.vdi': vdi }, 'a.vdi')
  t.match(says, /vdi images are not read yet; .*qemu-img convert -f vdi -O qcow2/)
  t.notMatch(says, /--format raw/)
})

t.test('versions', async t => {
  const v4 = told(t, { a: withVersion(qcow2(), 4) }, 'a')
  t.match(v4, /qcow2 has no version 4; versions 2 and 3 are read, .*; restore it from a copy$/)
  const v9 = told(t, { a: withVersion(qcow(), 9) }, 'a', { format: 'qcow' })
  t.match(v9, /qcow has no version 9; restore it from a copy$/)
  const leave = /; leave out --format .*rebase -u -F$/
  t.match(told(t, { a: qcow2() }, 'a', { format: 'qcow' }), /this is qcow2, version [23], and not/)
  t.match(told(t, { a: qcow2() }, 'a', { format: 'qcow' }), leave)
  t.match(told(t, { a: qcow() }, 'a', { format: 'qcow2' }), leave)
})

t.test('a part of a vmdk disk', async t => {
  const flat = Buffer.alloc(2 ** 20)
  for (const options of [{}, { format: 'vmdk' }] as const) {
    t.equal(
      told(t, { 'x-flat.vmdk': flat, 'x.vmdk': '' }, 'x-flat.vmdk', options),
      'FOLDER/x-flat.vmdk: this is a part of a vmdk disk, without its descriptor; name its descriptor, FOLDER/x.vmdk, or show it as it is with --format raw',
    )
  }
  const alone = told(t, { 'y-f001.vmdk': flat }, 'y-f001.vmdk')
  t.match(alone, /; put its descriptor, y\.vmdk, beside it, and name that$/)
  t.match(told(t, { 'z.vmdk': flat }, 'z.vmdk'), /this is no vmdk image/)
})

t.test('files that an image names and that are not there', async t => {
  const data = told(t, { a: qcow2({ dataFile: 'gone.data' }) }, 'a')
  t.match(
    data,
    /data file "gone\.data" cannot be opened: no such file; put it back as FOLDER\/gone\.data, .*--allow-path/,
  )
  t.notMatch(data, /rebase/)
  const backing = { backing: { name: 'gone', format: 'raw' } }
  t.match(told(t, { a: qcow2(backing) }, 'a'), /no such file; restore it, or .*rebase -u$/)
  const old = told(t, { a: qcow('gone') }, 'a')
  t.match(old, /no such file; put it back as FOLDER\/gone, /)
  t.notMatch(old, /rebase/, 'qemu-img cannot change the name in a qcow image')
  const flat = Buffer.alloc(2 ** 20)
  const child = { 'disk.vmdk': descriptor('/vmfs/volumes/1/base.vmdk'), 'disk-flat.vmdk': flat }
  t.match(
    told(t, child, 'disk.vmdk'),
    /base\.vmdk" lies outside .*allow it with --allow-path \/vmfs\/volumes\/1, or, if it is not there, put it beside the image$/,
  )
})

t.test('a problem that makes an image read-only takes one line', async t => {
  const lossy = qcow2()
  // A snapshot in a table that does not begin with a cluster.
  lossy.writeUInt32BE(1, 60)
  lossy.writeBigUInt64BE(8n, 64)
  const corrupt = qcow2()
  corrupt.writeBigUInt64BE(2n, 72)
  const both = Buffer.from(lossy)
  both.writeBigUInt64BE(2n, 72)
  for (const [bytes, ...lines] of [
    [lossy, /the table at 8 .*, mounted read-only; the disk is read without that/],
    [corrupt, /marked corrupt, mounted read-only; what is readable is shown/],
    [both, /the table at 8 .*, mounted read-only; the disk/, /marked corrupt; what is readable/],
  ] as const) {
    const folder = t.testdir({ 'disk.qcow2': bytes })
    const chain = openChain(join(folder, 'disk.qcow2'), { access: 'write if possible' })
    closeChain(chain)
    t.match(chain.warnings, lines)
    t.equal(chain.warnings.length, lines.length)
  }
})

t.test('the root as a mount point', async t => {
  t.throws(() => checkMountpoint('/'), { message: /^\/: the root .*; choose an empty folder$/ })
})
