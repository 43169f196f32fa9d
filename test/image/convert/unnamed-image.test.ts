/** New images of all kinds that are read again before they have names; and whose writes fail, one after the other. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { OptionValues } from '../../../src/formats/creating.js'
import { convertToNew, type NewTarget } from '../../../src/image/convert/convert.js'
import { openSource } from '../../../src/image/reading/source.js'
import { noise } from '../../fixtures/model.js'
import { EIO, wrappingWrites } from '../../soundness/command-cuts.js'
import { tempFolder } from '../../support/run.js'
import { FaultPlan, FaultStore } from '../../support/stores.js'

const K = 1024
const DISK = Buffer.concat([noise(300 * K, 1), Buffer.alloc(500 * K), noise(100 * K, 2)])

interface Kind {
  readonly format: string
  readonly options?: OptionValues
  readonly isPacked?: boolean
  readonly passphrase?: string
  readonly hasBase?: boolean
}

const KINDS: Record<string, Kind> = {
  raw: { format: 'raw' },
  qcow2: { format: 'qcow2' },
  'qcow2, compressed': { format: 'qcow2', isPacked: true },
  'qcow2 on a base': { format: 'qcow2', hasBase: true },
  'qcow2, data in another file': { format: 'qcow2', options: { data_file: 'data' } },
  'qcow2, LUKS': {
    format: 'qcow2',
    options: { 'encrypt.format': 'luks', 'encrypt.iter-time': 10 },
    passphrase: 'secret',
  },
  qcow: { format: 'qcow' },
  cow: { format: 'cow' },
}
for (const subformat of [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'streamOptimized',
]) {
  KINDS[`vmdk, ${subformat}`] = { format: 'vmdk', options: { subformat } }
}

for (const [title, kind] of Object.entries(KINDS)) {
  t.test(title, async t => {
    const folder = tempFolder(t)
    const source = join(folder, 'source.raw')
    writeFileSync(source, DISK)
    writeFileSync(join(folder, 'base.raw'), Buffer.concat([DISK.subarray(0, 200 * K)], DISK.length))
    const out = join(folder, 'out')
    mkdirSync(out)
    const contents = () =>
      readdirSync(out).map(name => [name, readFileSync(join(out, name), 'base64')])

    /** @param onProgress called with how far the disk is done; past its size it is verified */
    const converted = async (onProgress?: (offset: number) => void) => {
      const { format, options = {}, isPacked = false, passphrase, hasBase } = kind
      const opened = await openSource(source, { format: 'raw', takesLocks: false })
      const baseFile = join(folder, 'base.raw')
      const base = hasBase ? await openSource(baseFile, { format: 'raw' }) : undefined
      const target: NewTarget = {
        ...{ path: join(out, 'target'), format, options, isPacked, sparseBytes: 4096, force: true },
        ...(base && {
          base: { source: base, target: { name: baseFile, format: 'raw', sizeBytes: DISK.length } },
        }),
        ...(passphrase !== undefined && { passphrase: Buffer.from(passphrase) }),
        isVerified: true,
      }
      try {
        await convertToNew(opened, target, { onProgress })
      } finally {
        opened.close()
        base?.close()
      }
    }

    /** The source changes between copying and verifying. */
    const failing = async () => {
      let hasChanged = false
      const change = (offset: number) => {
        if (offset < DISK.length || hasChanged) return
        hasChanged = true
        writeFileSync(source, Buffer.concat([noise(64 * K, 9), DISK.subarray(64 * K)]))
      }
      try {
        await t.rejects(converted(change), { message: /differs from the source/ })
      } finally {
        writeFileSync(source, DISK)
      }
    }

    await failing()
    t.strictSame(contents(), [], 'no target that differs')
    await converted()
    const made = contents()
    t.ok(made.length > 0, 'the target')
    await failing()
    t.strictSame(contents(), made, 'the old target stays')

    const plan = new FaultPlan()
    await wrappingWrites(store => new FaultStore(store, plan), converted)
    const all = plan.counts.write + plan.counts.truncate
    const again = contents()
    for (let nth = 0; nth < all; nth += Math.ceil(all / 3)) {
      const calls = ['write', 'truncate'] as const
      const fault = new FaultPlan({ nth, calls, errno: EIO, persists: false, part: 0.5 })
      const act = () => wrappingWrites(store => new FaultStore(store, fault), converted)
      await t.rejects(act(), { code: 'EIO' }, `call ${nth} of ${all} fails`)
      t.strictSame(contents(), again, 'the old target stays')
    }
    t.ok(readFileSync(source).equals(DISK), 'the source is as it was')
  })
}
