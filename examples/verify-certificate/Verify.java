import java.io.FileInputStream;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.Certificate;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.PKIXRevocationChecker.Option;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Would a service take this certificate now? With the JDK's own PKIX checks (11 or newer).
 *
 * <pre>java Verify.java CERT.pem CA.pem SPIFFE-ID</pre>
 *
 * CERT.pem is the caller's certificate first, then what is between it and its root; CA.pem are the roots of
 * your trust domain. A TLS server takes the same parameters:
 * {@code trustManagerFactory.init(new CertPathTrustManagerParameters(parameters))}, for which they are a
 * PKIXBuilderParameters. The JDK keeps a list that it fetched for 30 seconds.
 *
 * <p>Exit: 0 taken, 1 refused, 2 usage.
 */
public final class Verify {
    private static final int URI = 6;

    public static void main(String[] args) {
        if (args.length != 3) {
            System.err.println("usage: java Verify.java CERT.pem CA.pem SPIFFE-ID");
            System.exit(2);
        }
        try {
            check(read(args[0]), read(args[1]), args[2]);
            System.out.println("taken: " + args[2]);
        } catch (GeneralSecurityException | IOException refused) {
            System.err.println("refused: " + refused.getMessage());
            System.exit(1);
        }
    }

    static void check(List<X509Certificate> chain, List<X509Certificate> roots, String id)
            throws GeneralSecurityException {
        // Fetch the list that the certificate names. Both are off unless switched on, and wait long.
        System.setProperty("com.sun.security.enableCRLDP", "true");
        System.setProperty("com.sun.security.crl.timeout", "5");
        System.setProperty("com.sun.security.crl.readtimeout", "5");

        CertPathValidator validator = CertPathValidator.getInstance("PKIX");
        PKIXRevocationChecker revocation = (PKIXRevocationChecker) validator.getRevocationChecker();
        // Without SOFT_FAIL: no list, no entry. Lists cover leaves only.
        revocation.setOptions(EnumSet.of(Option.PREFER_CRLS, Option.NO_FALLBACK, Option.ONLY_END_ENTITY));

        Set<TrustAnchor> anchors = new HashSet<>();
        for (X509Certificate root : roots) {
            anchors.add(new TrustAnchor(root, null));
        }
        PKIXParameters parameters = new PKIXParameters(anchors);
        parameters.addCertPathChecker(revocation);
        validator.validate(CertificateFactory.getInstance("X.509").generateCertPath(chain), parameters);

        List<Object> ids = new ArrayList<>();
        for (List<?> name : chain.get(0).getSubjectAlternativeNames()) {
            if (name.get(0).equals(URI)) {
                ids.add(name.get(1));
            }
        }
        if (!ids.equals(List.of(id))) {
            throw new CertPathValidatorException("it is for " + ids + ", not for " + id);
        }
    }

    private static List<X509Certificate> read(String file) throws CertificateException, IOException {
        List<X509Certificate> found = new ArrayList<>();
        try (FileInputStream in = new FileInputStream(file)) {
            for (Certificate one : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                found.add((X509Certificate) one);
            }
        }
        if (found.isEmpty()) {
            throw new CertificateException(file + ": no certificate");
        }
        return found;
    }

    private Verify() {}
}
