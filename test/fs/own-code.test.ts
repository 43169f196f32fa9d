/** A thread that starts later must run the code that the others run. */
import { renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { OwnCode } from '../../src/fs/own-code.js'
import { tempFolder } from '../support/run.js'

t.test('code that an upgrade has replaced or removed is not started', async t => {
  const file = join(tempFolder(t), 'code.js')
  const changes: Record<string, () => void> = {
    'another file': () => {
      writeFileSync(`${file}.new`, 'old')
      renameSync(`${file}.new`, file)
    },
    'another text of the same length': () => {
      writeFileSync(file, 'new')
      utimesSync(file, 1, 1)
    },
    'no file': () => rmSync(file),
  }
  for (const [name, change] of Object.entries(changes)) {
    writeFileSync(file, 'old')
    const code = new OwnCode(pathToFileURL(file))
    await code.requireUnchanged()
    change()
    await t.rejects(code.requireUnchanged(), Error, name)
  }
})
